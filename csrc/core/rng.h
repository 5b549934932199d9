// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random bits as a pure function of
// (key, counter), so that dropout needs no state and a backward pass draws the same mask again.
// `static inline`: this header is compiled for several instruction sets and must not be merged by the linker.
#pragma once
#include <stdint.h>

namespace mg {

struct Philox4 {
  uint32_t v[4];
};

static inline Philox4 philox4x32(uint64_t key, uint64_t counter_lo, uint64_t counter_hi) {
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
  uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

// Dropout's mask, the same on every target. A block of kDropoutBlock elements takes 16 bits each from 32 counters of Philox:
// its first half from words 0 and 1 of each, four elements a counter, its second half from words 2 and 3, low bits first. An
// element is kept if its bits are >= p * 2^16, rounded; but p > 0 drops some and p < 1 keeps some.
constexpr int kDropoutCounters = 32;
constexpr int kDropoutBlock = 8 * kDropoutCounters;
static inline uint64_t dropout_high(uint64_t stream, int64_t step) { return (stream << 40) ^ (uint64_t)step; }
static inline uint32_t dropout_threshold(double p) {
  if (!(p > 0.0)) return 0;
  if (p >= 1.0) return 65536u;
  const uint32_t nearest = (uint32_t)(p * 65536.0 + 0.5);
  return nearest < 1u ? 1u : nearest > 65535u ? 65535u : nearest;
}
static inline bool dropout_keep(uint64_t seed, uint64_t high, int64_t i, uint32_t threshold) {
  const int64_t block = i / kDropoutBlock, at = i % kDropoutBlock, place = at % (kDropoutBlock / 2);
  const Philox4 words = philox4x32(seed, (uint64_t)(block * kDropoutCounters + place / 4), high);
  const uint32_t word = words.v[(at >= kDropoutBlock / 2 ? 2 : 0) + place % 4 / 2];
  return (place % 2 ? word >> 16 : word & 0xffffu) >= threshold;
}

}  // namespace mg
