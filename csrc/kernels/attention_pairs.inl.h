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
  static inline void across_two(const bf16* row, int64_t stride, bool more, int64_t n, Vec& low, Vec& high) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36,
                                           4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __mmask32 columns = n < 32 ? (1u << n) - 1u : ~0u;
    const __m512i even = _mm512_maskz_loadu_epi16(columns, row);
    const __m512i odd = _mm512_maskz_loadu_epi16(more ? columns : 0, row + stride);
    low = {_mm512_castsi512_ps(_mm512_permutex2var_epi16(even, first, odd))};
    high = {_mm512_castsi512_ps(_mm512_permutex2var_epi16(even, _mm512_add_epi16(first, _mm512_set1_epi16(16)), odd))};
  }
  // Two rows become words of 32 columns by two permutations.
  static inline bool pack_across(const bf16* src, int64_t stride, int64_t rows, int64_t width, float* dst, int64_t dst_step,
                                 int64_t ahead) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                         35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16)), magnitude = _mm512_set1_epi16(0x7fff);
    __m512i largest = _mm512_setzero_si512();
    int64_t r = 0;
    for (; r < rows; r += 2, src += 2 * stride, dst += dst_step)
      for (int64_t i = 0; i < width; i += 32) {
        const __mmask32 columns = width - i < 32 ? (1u << (width - i)) - 1u : ~0u;
        const __m512i even = _mm512_maskz_loadu_epi16(columns, src + i);
        const __m512i odd = _mm512_maskz_loadu_epi16(r + 1 < rows ? columns : 0, src + i + stride);
        __builtin_prefetch(src + i + ahead, 0, 2);
        __builtin_prefetch(src + i + ahead + stride, 0, 2);
        largest = _mm512_max_epu16(largest, _mm512_and_si512(even, magnitude));
        largest = _mm512_max_epu16(largest, _mm512_and_si512(odd, magnitude));
        _mm512_storeu_si512(dst + i, _mm512_permutex2var_epi16(even, low, odd));
        if (width - i > 16) _mm512_storeu_si512(dst + i + 16, _mm512_permutex2var_epi16(even, high, odd));
      }
    for (; r % kSpanStep; r += 2, dst += dst_step) clear(dst, width);
    return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7f80)) == 0;
  }
  // Numbers that are not seen become zeros of their sign.
  static inline Vec seen(Vec words, bool first, bool second) {
    const uint32_t keep = (first ? 0xffffu : 0x8000u) | (second ? 0xffff0000u : 0x80000000u);
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words.v), _mm512_set1_epi32((int)keep)))};
  }
};

// Pairs of numbers that are stored otherwise and that bf16 holds: codes, and keys that a bf16 model left in floats.
template <class S> struct PairsFrom : AttentionPairs {
  using Element = S;
  static constexpr bool kInMemory = false;  // words are made, not read
  static inline Vec part(const S* p, int64_t n) { return n >= kWidth ? load(p) : n > 0 ? load_n(p, n) : zero(); }
  static inline Vec along(const S* p) { return along_n(p, 2 * kWidth); }
  static inline Vec along_n(const S* p, int64_t n) {
    return {_mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(part(p + kWidth, n - kWidth).v, part(p, n).v))};
  }
  static inline void across_two(const S* row, int64_t stride, bool more, int64_t n, Vec& low, Vec& high) {
    const S* next = row + (more ? stride : 0);
    low = across_rows(part(row, n), more ? part(next, n) : zero());
    high = across_rows(part(row + kWidth, n - kWidth), more ? part(next + kWidth, n - kWidth) : zero());
  }
  static inline bool pack_across(const S* src, int64_t stride, int64_t rows, int64_t width, float* dst, int64_t dst_step,
                                 int64_t ahead) {
    Vec probe = zero();
    int64_t r = 0;
    for (; r < rows; r += 2, src += 2 * stride, dst += dst_step)
      for (int64_t i = 0; i < width; i += kWidth) {
        const Vec even = part(src + i, width - i), odd = r + 1 < rows ? part(src + stride + i, width - i) : zero();
        __builtin_prefetch(src + i + ahead, 0, 2);
        __builtin_prefetch(src + i + ahead + stride, 0, 2);
        probe = fma(odd, zero(), fma(even, zero(), probe));
        store(dst + i, across_rows(even, odd));
      }
    for (; r % kSpanStep; r += 2, dst += dst_step) clear(dst, width);
    return hsum(probe) == 0.0f;
  }
};
template <class S> struct StoredAs<AttentionPairs, S> {
  using Words = PairsFrom<S>;
};
template <> struct StoredAs<AttentionPairs, bf16> {
  using Words = AttentionPairs;
};
