// AVX-512 F, BW, DQ, VL: sixteen floats, tails by mask register.
constexpr int kWidth = 16;
constexpr int kRegisters = 32;
struct Vec {
  __m512 v;
};
struct Mask {
  __mmask16 v;
};
static inline __mmask16 lanes_below(int64_t n) { return (__mmask16)((1u << n) - 1u); }
static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
static inline Vec load_two(const float* low, const float* high) {  // by intrinsics, or gcc takes two loads and a shuffle
  const __m256d a = _mm256_loadu_pd((const double*)low), b = _mm256_loadu_pd((const double*)high);
  return {_mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(a), b, 1))};
}
static inline Vec load_n(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(lanes_below(n), p)}; }
static inline void store_n(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, lanes_below(n), a.v); }
static inline __m512i low_places() {
  return _mm512_set_epi32(0x000f000f, 0x000e000e, 0x000d000d, 0x000c000c, 0x000b000b, 0x000a000a, 0x00090009, 0x00080008, 0x00070007,
                          0x00060006, 0x00050005, 0x00040004, 0x00030003, 0x00020002, 0x00010001, 0);
}
static inline __m512i high_places() {
  return _mm512_set_epi32(0x001f001f, 0x001e001e, 0x001d001d, 0x001c001c, 0x001b001b, 0x001a001a, 0x00190019, 0x00180018, 0x00170017,
                          0x00160016, 0x00150015, 0x00140014, 0x00130013, 0x00120012, 0x00110011, 0x00100010);
}
static inline Vec widen(__m256i halves) {
#if defined(__clang__)  // clang 19 sees a shuffle with zeros in the other form and, where an abs follows, never comes to an end
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
#else
  return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, low_places(), _mm512_castsi256_si512(halves)))};
#endif
}
// To nearest even, NaN kept. VCVTNEPS2BF16 does it where there is one, but reads denormals as zero: those go the long way.
static inline __m256i narrowed(Vec a) {
#if defined(__AVX512BF16__)
  if (__builtin_expect(_mm512_fpclass_ps_mask(a.v, 0x20) == 0, 1)) return (__m256i)_mm512_cvtneps_pbh(a.v);
#endif
  const __m512i bits = _mm512_castps_si512(a.v), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}
static inline Vec load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
static inline void store(bf16* p, Vec a) { _mm256_storeu_si256((__m256i*)p, narrowed(a)); }
static inline Vec load_n(const bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(lanes_below(n), p)); }
static inline void store_n(bf16* p, Vec a, int64_t n) { _mm256_mask_storeu_epi16(p, lanes_below(n), narrowed(a)); }
static inline Vec load(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
static inline Vec load_n(const int8_t* p, int64_t n) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes_below(n), p)))};
}
static inline void store_bytes(int8_t* p, Vec a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v))); }
static inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
static inline Vec zero() { return {_mm512_setzero_ps()}; }
static inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
static inline Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
static inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
static inline Vec round_even(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline Vec pow2i(Vec n) {
  const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
}
static inline Vec exponent(Vec x) {
  const __m512i e = _mm512_srli_epi32(_mm512_castps_si512(x.v), 23);
  return {_mm512_cvtepi32_ps(_mm512_sub_epi32(e, _mm512_set1_epi32(127)))};
}
static inline Vec mantissa(Vec x) {
  const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x007fffff));
  return {_mm512_castsi512_ps(_mm512_or_si512(bits, _mm512_set1_epi32(0x3f800000)))};
}
static inline Mask lt(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
static inline Mask le(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
static inline Mask eq(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
static inline Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
static inline float hsum(Vec a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
static inline float hmax(Vec a) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
// The largest lane of each of kWidth vectors: halves of two meet by loads, lanes by shuffles of two vectors.
static inline Vec largest_lanes(const float* vectors) {
  __m512 half[8], quarter[4], pair[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const float *a = vectors + i * kWidth, *b = a + 8 * kWidth;
    half[i] = max(load_two(a, b), load_two(a + 8, b + 8)).v;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    quarter[i] = _mm512_max_ps(_mm512_shuffle_f32x4(half[i], half[i + 4], 0x88), _mm512_shuffle_f32x4(half[i], half[i + 4], 0xdd));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(quarter[i]), b = _mm512_castps_pd(quarter[i + 2]);
    pair[i] = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const __m512 mixed = _mm512_max_ps(_mm512_shuffle_ps(pair[0], pair[1], 0x88), _mm512_shuffle_ps(pair[0], pair[1], 0xdd));
  // Vectors 0, 2, 1, 3; 8, 10, 9, 11; 4 ...; 12 ...
  return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), mixed)};
}
typedef uint64_t Words64 __attribute__((vector_size(64)));
static inline Words64 mul_words(Words64 a, Words64 b) { return (Words64)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
static inline Words64 xor3(Words64 a, Words64 b, Words64 c) {
  return (Words64)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
}
static inline Words64 low_words(Words64 a, Words64 b) {
  return (Words64)_mm512_mask_moveldup_ps((__m512)a, 0xaaaa, (__m512)b);
}
static inline Mask words_from(const uint16_t* words, uint32_t threshold) {
  return {_mm512_cmpge_epu32_mask(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)words)), _mm512_set1_epi32((int)threshold))};
}
