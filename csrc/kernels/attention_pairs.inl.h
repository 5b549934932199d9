// Pairs of bf16 for attention on VDPBF16PS: probabilities and their gradients are rounded to bf16 where they are factors of
// a product, and summed in float. Only for targets with simd/avx512bf16.h.
struct AttentionPairs : BfPairs {
  static inline void store_along(float* words, int64_t at, Vec a, Vec b) {
    _mm512_storeu_ps(words + at / 2, _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(b.v, a.v)));
  }
  static inline Vec across_rows(Vec even, Vec odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v)))};
  }
  static inline Vec probe_of(Vec words, Vec probe) {
    const Vec first = {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words.v), 16))};
    return fma(words, zero(), fma(first, zero(), probe));
  }
  // Numbers that are not seen become zeros of their sign.
  static inline Vec seen(Vec words, bool first, bool second) {
    const uint32_t keep = (first ? 0xffffu : 0x8000u) | (second ? 0xffff0000u : 0x80000000u);
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words.v), _mm512_set1_epi32((int)keep)))};
  }
};
