// bfloat16: the upper half of a float. A storage type: kernels load it as float, compute in float and round when they store.
// `static inline`: this header is compiled for several instruction sets and must not be merged by the linker.
#pragma once
#include <stdint.h>
#include <string.h>

namespace mg {

struct bf16 {
  uint16_t bits;
};

// What stays wide when storage is narrow: statistics, losses, weight gradients, optimizer state.
template <class T> struct WideOf {
  using type = T;
};
template <> struct WideOf<bf16> {
  using type = float;
};
template <class T> using Wide = typename WideOf<T>::type;

template <class T> constexpr bool kNarrow = sizeof(T) < sizeof(Wide<T>);

static inline float value_of(float x) { return x; }
static inline float value_of(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

static inline void assign(float& to, float x) { to = x; }
// To nearest, ties to even; NaN stays NaN (quiet).
static inline void assign(bf16& to, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = (uint16_t)(x == x ? rounded : (bits >> 16) | 0x40u);
}

}  // namespace mg
