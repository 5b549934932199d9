// Several vectors that go through a formula side by side, operation by operation: a Vecs is used where a Vec is, also beside
// one. An exponential is a chain of about 90 cycles, and a processor looks only some 128 operations ahead, so that vectors
// whose formulas are written one after the other overlap too little.
#define MG_ALWAYS __attribute__((always_inline))  // also of lambdas: what stays a call takes its vectors through memory
#define MG_INLINE static inline MG_ALWAYS
constexpr int kTogether = kRegisters >= 32 ? 4 : 2;
struct Vecs {
  Vec v[kTogether];
};
struct Masks {
  Mask v[kTogether];
};
template <class A> struct IsMany {
  static constexpr bool value = false;
};
template <> struct IsMany<Vecs> {
  static constexpr bool value = true;
};
template <> struct IsMany<Masks> {
  static constexpr bool value = true;
};
template <bool kHolds> struct When {};
template <> struct When<true> {
  using type = int;
};
MG_INLINE Vec one_of(Vec a, int) { return a; }
MG_INLINE Mask one_of(Mask a, int) { return a; }
MG_INLINE Vec one_of(const Vecs& a, int i) { return a.v[i]; }
MG_INLINE Mask one_of(const Masks& a, int i) { return a.v[i]; }

MG_INLINE Vecs many(Vec a) {
  Vecs r;
#pragma GCC unroll 4
  for (int i = 0; i < kTogether; ++i) r.v[i] = a;
  return r;
}

#define MG_MANY(Result, name)                                                                        \
  template <class... A, typename When<(IsMany<A>::value || ...)>::type = 0>                          \
  MG_INLINE Result name(const A&... a) {                                                             \
    Result r;                                                                                        \
    _Pragma("GCC unroll 4") for (int i = 0; i < kTogether; ++i) r.v[i] = name(one_of(a, i)...);      \
    return r;                                                                                        \
  }
MG_MANY(Vecs, add)
MG_MANY(Vecs, sub)
MG_MANY(Vecs, mul)
MG_MANY(Vecs, div)
MG_MANY(Vecs, max)
MG_MANY(Vecs, min)
MG_MANY(Vecs, fma)
MG_MANY(Vecs, fnma)
MG_MANY(Vecs, sqrt)
MG_MANY(Vecs, abs)
MG_MANY(Vecs, round_even)
MG_MANY(Vecs, pow2i)
MG_MANY(Masks, lt)
MG_MANY(Masks, le)
MG_MANY(Vecs, select)

template <class T> MG_INLINE Vecs load_all(const T* p) {
  Vecs r;
#pragma GCC unroll 4
  for (int i = 0; i < kTogether; ++i) r.v[i] = load(p + i * kWidth);
  return r;
}
template <class T> MG_INLINE void store_all(T* p, const Vecs& a) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == sizeof(bf16)) {
    // 32 numbers at a time. The instruction reads denormals as zero: where something became zero that is looked at.
    const __m512i low = (__m512i)_mm512_cvtne2ps_pbh(a.v[1].v, a.v[0].v), high = (__m512i)_mm512_cvtne2ps_pbh(a.v[3].v, a.v[2].v);
    const __m512i digits = _mm512_set1_epi16(0x7fff);
    const __mmask32 zeros = _kor_mask32(_mm512_testn_epi16_mask(low, digits), _mm512_testn_epi16_mask(high, digits));
    __mmask16 denormals = 0;
    if (__builtin_expect(zeros != 0, 0))
      for (int i = 0; i < kTogether; ++i) denormals |= _mm512_fpclass_ps_mask(a.v[i].v, 0x20);
    if (__builtin_expect(denormals == 0, 1)) {
      _mm512_storeu_si512(p, low);
      _mm512_storeu_si512(p + 2 * kWidth, high);
      return;
    }
  }
#endif
#pragma GCC unroll 4
  for (int i = 0; i < kTogether; ++i) store(p + i * kWidth, a.v[i]);
}
