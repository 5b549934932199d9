// Pairs of bf16 in 32-bit words, multiplied by VDPBF16PS: what gemm needs beside the vector contract (see FloatWords in
// kernels/gemm_tile.inl.h). A word holds k (low half) and k + 1; beyond the end of K both factors are zero. The instruction
// reads denormals as zero.
struct PairStep {
  // A tile can leave its sums as bf16, if no lane is denormal: the instruction would round it to zero.
  static constexpr bool kRounds = true;
  static inline bool rounds(Vec a) { return _mm512_fpclass_ps_mask(a.v, 0x20) == 0; }
  static inline void store_rounded(bf16* p, Vec a) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a.v)); }
  using Out = bf16;
  static inline Vec step(Vec a, Vec b, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_castps_si512(a.v), (__m512bh)_mm512_castps_si512(b.v))};
  }
};
struct BfPairs {
  using Element = bf16;
  using Step = PairStep;
  static constexpr int kPer = 2;
  static constexpr bool kInMemory = true;
  static inline Vec along(const bf16* p) { return {_mm512_castsi512_ps(_mm512_loadu_si512(p))}; }
  static inline Vec along_n(const bf16* p, int64_t n) {
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1), p))};
  }
  static inline Vec across(const bf16* row, int64_t ld, bool more, int64_t n) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                           35, 3, 34, 2, 33, 1, 32, 0);
    // Half as wide as the vector: a load of 64 bytes would cross lines more often, masked or not.
    const __m256i even = _mm256_maskz_loadu_epi16(lanes_below(n), row);
    const __m256i odd = _mm256_maskz_loadu_epi16(more ? lanes_below(n) : 0, row + (more ? ld : 0));
    return {_mm512_castsi512_ps(_mm512_permutex2var_epi16(_mm512_castsi256_si512(even), order, _mm512_castsi256_si512(odd)))};
  }
  static inline float word(const bf16* p, bool more) {
    const uint32_t bits = p[0].bits | (more ? (uint32_t)p[1].bits << 16 : 0);
    float x;
    memcpy(&x, &bits, 4);
    return x;
  }
};
