// Products of unsigned weight codes and signed activation codes, four a lane, added up exactly by VPDPBUSD. gcc 12 moves and
// spills sums around the intrinsic. MG_EVEX_VNNI: the same instruction in the other encoding (docs/releasing.md).
constexpr bool kLaneLoops = false, kNarrowSums = false;
constexpr int kByteQuads = 1;
constexpr int dot_registers(int rows, int vectors, int) { return rows * vectors + vectors + 1; }  // codes, a word of activations
struct Quads {
  IntLanes v;
};
static inline Quads quads(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return {IntLanes{} + word};
}
static inline Ints dot(Ints sum, Ints a, Quads b) {
#if defined(__AVX512F__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
#elif defined(MG_EVEX_VNNI)
  __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum.v) : "x"(a.v), "x"(b.v));
#else
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.v) : "x"(a.v), "x"(b.v));
#endif
  return sum;
}
#include "simd/dot_sums.h"
