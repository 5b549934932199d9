#if !defined(__AVX512F__)
// The largest lane of each of kWidth vectors.
static inline Vec largest_lanes(const float* vectors) {
  alignas(64) float top[kWidth];
  for (int i = 0; i < kWidth; ++i) top[i] = hmax(load(vectors + i * kWidth));
  return load(top);
}
#endif

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

// y = scale * x where 16 random bits are `least` (at most 0xffff) or more, else 0: kCount numbers, with their bits side by side.
// Scale is at least 1.
#if defined(__AVX512F__)
struct Keeper {
  __m512i least, low = low_places(), high = high_places(), exponent = _mm512_set1_epi16(0x7f80), digits = _mm512_set1_epi16(0x7f);
  __mmask32 upper = 0xaaaaaaaa;
  Vec scale;
  Keeper(uint32_t from, Vec by) : least(_mm512_set1_epi16((short)from)), scale(by) {
    __asm__("" : "+v"(least), "+v"(low), "+v"(high), "+v"(exponent), "+v"(digits), "+Yk"(upper));  // or each use makes them anew
  }
};
template <int kCount, class T> MG_INLINE void put_kept(T* y, const T* x, const void* bits, const Keeper& k) {
  static_assert(kCount == 2 * kWidth);
  const __mmask32 keep = _mm512_cmpge_epu16_mask(_mm512_loadu_si512(bits), k.least);
  const __mmask16 first = (__mmask16)keep, second = (__mmask16)(keep >> 16);
  if constexpr (sizeof(T) == sizeof(float)) {
    store(y, {_mm512_maskz_mul_ps(first, load(x).v, k.scale.v)});
    store(y + kWidth, {_mm512_maskz_mul_ps(second, load(x + kWidth).v, k.scale.v)});
  } else {
    const __m512i both = _mm512_loadu_si512(x);
    const __m512 low = (__m512)_mm512_maskz_permutexvar_epi16(k.upper, k.low, both);
    const __m512 high = (__m512)_mm512_maskz_permutexvar_epi16(k.upper, k.high, both);
#if defined(__AVX512BF16__)
    // A denormal would become zero; whatever else has the exponent 0 is rare.
    const __mmask32 small = _mm512_mask_testn_epi16_mask(keep, both, k.exponent);
    if (__builtin_expect(small == 0 || _mm512_mask_test_epi16_mask(small, both, k.digits) == 0, 1)) {
      const __m512 first_half = _mm512_mul_ps(low, k.scale.v), second_half = _mm512_mul_ps(high, k.scale.v);
      _mm512_storeu_si512(y, (__m512i)_mm512_maskz_cvtne2ps_pbh(keep, second_half, first_half));
      return;
    }
#endif
    store(y, {_mm512_maskz_mul_ps(first, low, k.scale.v)});
    store(y + kWidth, {_mm512_maskz_mul_ps(second, high, k.scale.v)});
  }
}
#else
struct Keeper {
  uint32_t least;
  Vec scale;
};
template <int kCount, class T> MG_INLINE void put_kept(T* y, const T* x, const void* bits, const Keeper& k) {
  uint16_t words[kCount];
  memcpy(words, bits, sizeof words);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; i += kWidth)
    store(y + i, select(words_from(words + i, k.least), mul(load(x + i), k.scale), zero()));
}
#endif
