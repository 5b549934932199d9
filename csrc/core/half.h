// float16 as a storage type of scales. Widening is exact.
#pragma once
#include <stdint.h>
#include <string.h>

namespace mg {

static inline float half_value(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | fraction << 13;
  } else if (exponent > 0) {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  } else {
    const float tiny = (float)fraction * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -tiny : tiny;
  }
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// To nearest, ties to even; beyond the range infinity; NaN stays NaN.
static inline uint16_t half_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves multiples of 2^-24, rounded by the addition
    float size;
    memcpy(&size, &magnitude, 4);
    size += 0.5f;
    uint32_t sum;
    memcpy(&sum, &size, 4);
    return (uint16_t)(sign | (sum - 0x3f000000u));
  }
  return (uint16_t)(sign | (((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - (112u << 10)));
}

}  // namespace mg
