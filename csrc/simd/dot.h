// Exact sums of products of unsigned weight codes and signed activation codes where no instruction adds up four of them.
#if defined(__AVX512BW__) || defined(__AVX2__)
constexpr bool kLaneLoops = false, kNarrowSums = true;
constexpr int kByteQuads = 2;
#if defined(__AVX512BW__)
typedef __m512i IntWords;
#define MG_INT(name) _mm512_##name
// x where the code is not negative, else -x.
struct Signs {
  __mmask64 negative;
};
static inline Signs signs(IntWords codes) { return {_mm512_movepi8_mask(codes)}; }
static inline IntWords with_sign(IntWords x, Signs of) { return _mm512_mask_sub_epi8(x, of.negative, _mm512_setzero_si512(), x); }
#else
typedef __m256i IntWords;
#define MG_INT(name) _mm256_##name
struct Signs {
  __m256i codes;
};
static inline Signs signs(IntWords codes) { return {codes}; }
static inline IntWords with_sign(IntWords x, Signs of) { return _mm256_sign_epi8(x, of.codes); }
#endif
typedef int16_t Shorts __attribute__((vector_size(4 * kWidth)));
static inline IntWords word_of(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return MG_INT(set1_epi32)(word);
}
static inline IntWords sum_pairs(IntWords shorts) { return MG_INT(madd_epi16)(shorts, MG_INT(set1_epi16)(1)); }
// Where registers are tight the compiler may not put off an addition: what waits to be added takes one.
static inline __attribute__((always_inline)) void settle(Shorts& sum, bool tight) {
  if (tight) __asm__("" : "+v"(sum));
}
// Sums; codes, and with 8 bits their signs; a word of activations and products.
constexpr int dot_registers(int rows, int vectors, int bits) { return rows * vectors + (bits == 8 ? 2 * vectors + 1 : vectors) + 2; }

// VPMADDUBSW adds up pairs of products in 16 bits, and these hold as many quads as kQuads says before VPMADDWD must widen
// them: 2 x 128 x 15 x 8 = 30,720 of codes of 4 bits.
template <int R, int V, int Bits> struct QSums {
  static constexpr bool kLess128 = false;
  static constexpr int64_t kQuads = 32767 / (2 * 128 * ((1 << Bits) - 1));
  static constexpr bool kTight = kRegisters == 16 && R * V > 4;
  IntLanes at[R][V];
  Shorts part[R][V];
  inline __attribute__((always_inline)) void start(int r, Ints x) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) at[r][v] = x.v, part[r][v] = Shorts{};
  }
  template <int Stride, int N, class Take> inline __attribute__((always_inline)) void add(const Take& take, const int8_t* a) {
#pragma GCC unroll 8
    for (int q = 0; q < N; ++q) {
      forget_loads(kTight);
      IntWords codes[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) codes[v] = (IntWords)take(q, v).v;
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const IntWords x = word_of(a + 4 * (q * Stride + r));
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) part[r][v] += (Shorts)MG_INT(maddubs_epi16)(codes[v], x), settle(part[r][v], kTight);
      }
      if (N >= kQuads && (q + 1) % kQuads == 0) fold();
    }
  }
  inline __attribute__((always_inline)) void fold() {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) at[r][v] += (IntLanes)sum_pairs((IntWords)part[r][v]), part[r][v] = Shorts{};
    }
  }
  inline Ints get(int r, int v) const { return {at[r][v]}; }
};
// Of 8 bits a pair of products fits 16 bits if codes are taken less 128: their absolute values times the activations with
// their signs, at most 2 x 128 x 127 = 32,512.
template <int R, int V> struct QSums<R, V, 8> {
  static constexpr bool kLess128 = true;
  static constexpr int64_t kQuads = INT64_MAX;
  IntLanes at[R][V];
  inline __attribute__((always_inline)) void start(int r, Ints x) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) at[r][v] = x.v;
  }
  template <int Stride, int N, class Take> inline __attribute__((always_inline)) void add(const Take& take, const int8_t* a) {
#pragma GCC unroll 8
    for (int q = 0; q < N; ++q) {
      IntWords sizes[V];
      Signs sign[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const IntWords codes = (IntWords)(take(q, v).v ^ (int32_t)0x80808080u);
        sizes[v] = MG_INT(abs_epi8)(codes), sign[v] = signs(codes);
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const IntWords x = word_of(a + 4 * (q * Stride + r));
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) at[r][v] += (IntLanes)sum_pairs(MG_INT(maddubs_epi16)(sizes[v], with_sign(x, sign[v])));
      }
    }
  }
  inline void fold() {}
  inline Ints get(int r, int v) const { return {at[r][v]}; }
};
#undef MG_INT
#else
constexpr bool kLaneLoops = true, kNarrowSums = false;
constexpr int kByteQuads = 1;
// Sums, codes, four factors and products.
constexpr int dot_registers(int rows, int vectors, int) { return rows * vectors + vectors + 5; }
struct Quads {
  int32_t code[4];
};
static inline Quads quads(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
static inline Ints dot(Ints sum, Ints a, Quads b) {
  return {sum.v + (a.v & 255) * b.code[0] + ((a.v >> 8) & 255) * b.code[1] + ((a.v >> 16) & 255) * b.code[2] +
          ((a.v >> 24) & 255) * b.code[3]};
}
#include "simd/dot_sums.h"
#endif
