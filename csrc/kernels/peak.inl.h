// The machine's arithmetic limit, as a loop that does nothing else; a bench holds the other kernels against it.

// Chains that do not wait for each other: enough to hide a latency of four to six cycles on two units, few enough to stay
// in registers beside the two factors.
constexpr int kPeakChains = kWidth == 16 ? 16 : kWidth == 8 ? 12 : 8;

// x = x * 0.5 + 0.5 goes to 1 from anywhere.
struct FmaChain {
  static constexpr int64_t kFlops = 2 * kWidth;
  static inline Vec first() { return set1(0.5f); }
  static inline Vec second() { return set1(0.5f); }
  static inline Vec step(Vec x, Vec a, Vec b) { return fma(x, a, b); }
};

// kPeakGrain operations in steps of `Chain`; the mean of the chains, which start around 1 and differ, so that no compiler
// makes one of them.
template <class Chain> static inline float peak_mean() {
  constexpr int64_t kPass = kPeakChains * Chain::kFlops;
  static_assert(kPeakGrain % kPass == 0, "a share is whole passes");
  const Vec a = Chain::first(), b = Chain::second();
  Vec x[kPeakChains];
  for (int i = 0; i < kPeakChains; ++i) x[i] = set1(1.0f + 0.25f * (float)(2 * i - kPeakChains + 1));
  for (int64_t pass = 0; pass < kPeakGrain / kPass; ++pass) {
#pragma GCC unroll 16
    for (int i = 0; i < kPeakChains; ++i) x[i] = Chain::step(x[i], a, b);
  }
  Vec sum = x[0];
  for (int i = 1; i < kPeakChains; ++i) sum = add(sum, x[i]);
  return hsum(sum) / (float)(kPeakChains * kWidth);
}
