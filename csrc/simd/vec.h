// The vector contract. A target includes one of scalar.h, avx2.h, avx512.h, neon.h inside its namespace; each defines
//
//   struct Vec { ... };            kWidth floats
//   constexpr int kWidth;
//   constexpr int kRegisters;      vector registers, for the height of register tiles
//   Vec load(const float*)         store(float*, Vec)            any alignment
//   Vec load_n(const float*, n)    store_n(float*, Vec, n)       first n floats, 0 <= n <= kWidth; the rest reads as 0
//   the same four for bf16*        widened by loads, rounded to nearest even by stores; NaN stays NaN
//   Vec load_two(const float* low, const float* high)   kWidth / 2 floats from each
//   store_bytes(int8_t*, Vec)      whole numbers of -127..127; of others any
//   Vec set1(float)  zero()
//   Vec add sub mul div max min    (max and min give the second operand if either is NaN, as the x86 instructions do)
//   Vec fma(a, b, c) = a * b + c   fnma(a, b, c) = c - a * b
//   Vec sqrt abs round_even
//   Vec pow2i(Vec n)               2^n for integral n in [-126, 127]
//   Vec exponent(Vec x)            floor(log2 x) of a positive normal x, as float;  Vec mantissa(Vec x) in [1, 2)
//   Mask lt(a, b)  le(a, b)  eq(a, b)  Vec select(Mask, Vec yes, Vec no)
//   Words64                        kWidth / 2 lanes of uint64_t, with GNU vector arithmetic
//   Words64 mul_words(a, b)        products of the low halves of the lanes
//   Words64 xor3(a, b, c)          a ^ b ^ c
//   Words64 low_words(a, b)        the low half of each lane of a, and that of b's above it
//   Mask words_from(const uint16_t*, n) which of kWidth words are n or more, 0 <= n <= 2^16
//   float hsum(Vec)  hmax(Vec)     fixed order of lanes
//
// fma is one rounding where the hardware has it; the scalar target rounds twice. simd/math.h builds exp, log, tanh, erf,
// sin-free activations on top, once for all targets. No header here includes the STL, and everything is static inline.
#pragma once
