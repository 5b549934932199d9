// Loops over vectors with their tails, sums whose order depends on the length alone, a choice of activation. Shared.

// A whole vector, the first n lanes of one, or kTogether vectors.
struct Full {};
struct Together {};
struct Part {
  int64_t n;
};
alignas(64) constexpr float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
alignas(64) constexpr float kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
template <class T> static inline Vec get(const T* p, Full) { return load(p); }
template <class T> static inline Vec get(const T* p, Part part) { return load_n(p, part.n); }
template <class T> static inline void put(T* p, Vec a, Full) { store(p, a); }
template <class T> static inline void put(T* p, Vec a, Part part) { store_n(p, a, part.n); }
template <class T> MG_INLINE Vecs get(const T* p, Together) { return load_all(p); }
template <class T> MG_INLINE void put(T* p, const Vecs& a, Together) { store_all(p, a); }
// Lanes past the end become `rest`: 0 before a sum, -infinity before a maximum.
static inline Vec lanes_or(Vec a, Full, float) { return a; }
static inline Vec lanes_or(Vec a, Part part, float rest) {
  return select(lt(zero(), load_n(kOnes, part.n)), a, set1(rest));
}
template <class T> static inline void store_or_add(T* p, Vec a, bool accumulate, Full) { store(p, accumulate ? add(load(p), a) : a); }
template <class T> static inline void store_or_add(T* p, Vec a, bool accumulate, Part part) {
  store_n(p, accumulate ? add(load_n(p, part.n), a) : a, part.n);
}

template <class T> MG_INLINE void store_or_add(T* p, const Vecs& a, bool accumulate, Together) {
  store_all(p, accumulate ? add(load_all(p), a) : a);
}
MG_INLINE Vec all_lanes(float x, Full) { return set1(x); }
MG_INLINE Vec all_lanes(float x, Part) { return set1(x); }
MG_INLINE Vecs all_lanes(float x, Together) { return many(set1(x)); }

// The lines of p, into L2.
template <class T> MG_INLINE void ask_for(const T* p, Full) { __builtin_prefetch(p, 0, 2); }
template <class T> MG_INLINE void ask_for(const T*, Part) {}
template <class T> MG_INLINE void ask_for(const T* p, Together) {
#pragma GCC unroll 4
  for (int i = 0; i < kTogether * kWidth; i += 64 / (int)sizeof(T)) ask_for(p + i, Full{});
}
// The lines of p into L1, taken from other cores. A line that another core has read too is taken a second time when it is
// written, and stores behind it wait. Asked for as if to be read it would be slower than not at all, so where PREFETCHW
// does not exist nothing is done.
template <class T> MG_INLINE void ask_to_write([[maybe_unused]] const T* p, Full) {
#if defined(__PRFCHW__) || !defined(__x86_64__)
  __builtin_prefetch(p, 1, 3);
#endif
}
template <class T> MG_INLINE void ask_to_write(const T*, Part) {}
template <class T> MG_INLINE void ask_to_write(const T* p, Together) {
#pragma GCC unroll 4
  for (int i = 0; i < kTogether * kWidth; i += 64 / (int)sizeof(T)) ask_to_write(p + i, Full{});
}
constexpr int64_t kPutAhead = 512;  // elements, of what is written one after the other: other cores may have read it

// body(i, Together) for kTogether vectors at a time, then as each_vec.
template <class Body> MG_INLINE void each_many(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kTogether * kWidth <= end; i += kTogether * kWidth) body(i, Together{});
  for (; i + kWidth <= end; i += kWidth) body(i, Full{});
  if (i < end) body(i, Part{end - i});
}

// each_many where T is narrow; float's rows are faster vector by vector, as their arithmetic is little beside their memory.
template <class T, class Body> MG_INLINE void each_if_narrow(int64_t begin, int64_t end, const Body& body) {
  if constexpr (kNarrow<T>) {
    each_many(begin, end, body);
  } else {
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) body(i, Full{});
    if (i < end) body(i, Part{end - i});
  }
}

// body(i, Full) for whole vectors of [begin, end), then body(i, Part) for the tail.
template <class Body> static inline void each_vec(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) body(i, Full{});
  if (i < end) body(i, Part{end - i});
}

// Sum of term(i, part) over [0, n). Four chains of at most kSumBlock elements hide the latency of the addition; blocks
// are added in double, so the error stays near kSumBlock / (4 kWidth) roundings however long the row is.
constexpr int64_t kSumBlock = 2048;
template <class Term> static inline double blocked_sum(int64_t n, const Term& term) {
  double total = 0.0;
  for (int64_t block = 0; block < n; block += kSumBlock) {
    const int64_t end = block + kSumBlock < n ? block + kSumBlock : n;
    Vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    int64_t i = block;
    for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
      s0 = add(s0, term(i, Full{}));
      s1 = add(s1, term(i + kWidth, Full{}));
      s2 = add(s2, term(i + 2 * kWidth, Full{}));
      s3 = add(s3, term(i + 3 * kWidth, Full{}));
    }
    each_vec(i, end, [&](int64_t j, auto part) { s0 = add(s0, term(j, part)); });
    total += (double)hsum(add(add(s0, s1), add(s2, s3)));
  }
  return total;
}

// Two sums over one walk, of `first` and of left * right, in the same manner.
struct Terms {
  Vec first, left, right;
};
struct Sums {
  double first, second;
};
template <class TermsAt> static inline Sums blocked_sums(int64_t n, const TermsAt& terms) {
  Sums total = {0.0, 0.0};
  for (int64_t block = 0; block < n; block += kSumBlock) {
    const int64_t end = block + kSumBlock < n ? block + kSumBlock : n;
    Vec a0 = zero(), a1 = zero(), a2 = zero(), a3 = zero(), b0 = zero(), b1 = zero(), b2 = zero(), b3 = zero();
    const auto take = [&](Vec& a, Vec& b, int64_t i, auto part) MG_ALWAYS {
      const Terms t = terms(i, part);
      a = add(a, t.first);
      b = fma(t.left, t.right, b);
    };
    int64_t i = block;
    for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
      take(a0, b0, i, Full{});
      take(a1, b1, i + kWidth, Full{});
      take(a2, b2, i + 2 * kWidth, Full{});
      take(a3, b3, i + 3 * kWidth, Full{});
    }
    each_vec(i, end, [&](int64_t j, auto part) { take(a0, b0, j, part); });
    total.first += (double)hsum(add(add(a0, a1), add(a2, a3)));
    total.second += (double)hsum(add(add(b0, b1), add(b2, b3)));
  }
  return total;
}

// The larger; NaN if either is NaN.
static inline Vec nan_max(Vec a, Vec b) { return select(eq(a, a), max(a, b), a); }

// Largest term(i, part) over [0, n), NaN if any is NaN, -inf if n = 0. `term` must give -inf in lanes past the end.
template <class Term> static inline float row_max(int64_t n, const Term& term) {
  Vec m0 = set1(-INFINITY), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    m0 = nan_max(m0, term(i, Full{}));
    m1 = nan_max(m1, term(i + kWidth, Full{}));
    m2 = nan_max(m2, term(i + 2 * kWidth, Full{}));
    m3 = nan_max(m3, term(i + 3 * kWidth, Full{}));
  }
  each_vec(i, n, [&](int64_t j, auto part) { m0 = nan_max(m0, term(j, part)); });
  m0 = nan_max(nan_max(m0, m1), nan_max(m2, m3));
  const float nans = hsum(select(eq(m0, m0), zero(), set1(1.0f)));  // hmax may lose a NaN
  return nans > 0.0f ? NAN : hmax(m0);
}

// An activation or operation known at compile time, so that the loop holds one and no branch.
template <Act kValue> struct ActIs {
  static constexpr Act value = kValue;
};
template <class Body> static inline void with_act(Act act, const Body& body) {
  switch (act) {
    case Act::none: return body(ActIs<Act::none>{});
    case Act::gelu: return body(ActIs<Act::gelu>{});
    case Act::gelu_tanh: return body(ActIs<Act::gelu_tanh>{});
    case Act::relu: return body(ActIs<Act::relu>{});
    case Act::relu2: return body(ActIs<Act::relu2>{});
    case Act::silu: return body(ActIs<Act::silu>{});
  }
}

static inline int64_t padded(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }
static inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

static inline void clear(float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) store(p + i, zero());
}
