// Scales of groups of numbers, searched for. Lanes are groups: a group's sums are chains over its numbers in order.

struct QFitBook {
  float at[16], middle[16];  // entries that rise, and what lies half way from each to the next
};
static constexpr QFitBook q_fit_book(const int8_t (&values)[16]) {
  QFitBook book = {};
  for (int i = 0; i < 16; ++i) {
    book.at[i] = (float)values[i];
    book.middle[i] = i < 15 ? 0.5f * (float)(values[i] + values[i + 1]) : 0.0f;
  }
  return book;
}
static constexpr QFitBook kQFitIq4 = q_fit_book(kQIq4);

template <bool Least, bool Book> struct QFit16 {
  const float *x, *w;  // [number][lane]
  int64_t length;
  bool bounded;
  Vec low, high, sum_x, sum_w;
  Vec error, scale, least;  // the best so far

  inline __attribute__((always_inline)) Vec nearest(Vec v) const {
    if (!Book) return max(min(round_even(v), high), low);
    Vec q = set1(kQFitIq4.at[0]);
#pragma GCC unroll 16
    for (int i = 1; i < 16; ++i) q = select(lt(set1(kQFitIq4.middle[i - 1]), v), set1(kQFitIq4.at[i]), q);
    return q;
  }
  // Keeps s and m where their weighted squared error is the least so far, and replaces them by those that fit their integers.
  inline void visit(Vec& s, Vec& m) {
    const Vec inverse = select(lt(set1(kQTiny), abs(s)), div(set1(1.0f), s), zero());
    Vec cost = zero(), xq = zero(), qq = zero(), q1 = zero();
    for (int64_t i = 0; i < length; ++i) {
      const Vec v = load(x + i * kWidth), weight = load(w + i * kWidth), raised = Least ? add(v, m) : v;
      const Vec q = nearest(mul(raised, inverse)), off = fnma(s, q, raised), wq = mul(weight, q);
      cost = fma(mul(weight, off), off, cost);
      xq = fma(v, wq, xq), qq = fma(q, wq, qq);
      if (Least) q1 = add(q1, wq);
    }
    const Mask better = lt(cost, error);
    error = select(better, cost, error), scale = select(better, s, scale);
    if (!Least) {
      s = select(lt(zero(), qq), div(xq, qq), s);
      return;
    }
    least = select(better, m, least);
    const Vec across = fnma(q1, q1, mul(sum_w, qq));
    Vec slope = div(fnma(q1, sum_x, mul(sum_w, xq)), across), shift = div(fnma(qq, sum_x, mul(xq, q1)), across);
    if (bounded) {  // a minimum below zero cannot be stored: the best line through zero then
      const Mask through = lt(shift, zero());
      slope = select(through, div(xq, qq), slope), shift = select(through, zero(), shift);
    }
    const Mask fits = lt(zero(), slope);  // not where all integers are one
    s = select(fits, slope, s), m = select(fits, shift, m);
  }
};

template <bool Least, bool Book> static void q_fit_lanes(const QFitArgs<float>& args, const float* x, const float* w, float* scale, float* least) {
  Vec largest = zero(), lowest = set1(args.bounded ? 0.0f : INFINITY), highest = set1(args.bounded ? 0.0f : -INFINITY);
  QFit16<Least, Book> fit = {x, w, args.length, args.bounded != 0, set1((float)args.low), set1((float)args.high),
                             zero(), zero(), set1(INFINITY), zero(), zero()};
  for (int64_t i = 0; i < args.length; ++i) {
    const Vec v = load(x + i * kWidth), weight = load(w + i * kWidth);
    largest = max(largest, abs(v)), lowest = min(lowest, v), highest = max(highest, v);
    fit.sum_x = fma(weight, v, fit.sum_x), fit.sum_w = add(fit.sum_w, weight);
  }
  const Vec span = Least ? sub(highest, lowest) : largest, m0 = sub(zero(), lowest);
  fit.scale = div(span, fit.high), fit.least = m0;
  for (int32_t side = 0; side < args.sides; ++side) {
    for (int64_t c = 0; c < args.count; ++c) {
      const float steps = (float)args.high + args.steps[c];
      Vec s = div(span, set1(side ? -steps : steps)), m = m0;
      for (int32_t round = 0; round <= args.rounds; ++round) fit.visit(s, m);
    }
  }
  store(scale, fit.scale);
  if (Least) store(least, fit.least);
}

static void qfit(const QFitArgs<float>& args, const Share& share) {
  const int64_t end = (share.index + 1) * kQFitGroups < args.groups ? (share.index + 1) * kQFitGroups : args.groups;
  float *x = (float*)share.scratch, *w = x + args.length * kWidth;
  for (int64_t i = 0; i < args.length * kWidth; ++i) w[i] = 1.0f;
  for (int64_t first = share.index * kQFitGroups; first < end; first += kWidth) {
    const int64_t lanes = end - first < kWidth ? end - first : kWidth;
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      const bool there = lane < lanes;
      const float* from = args.x + (first + lane) * args.length;
      for (int64_t i = 0; i < args.length; ++i) x[i * kWidth + lane] = there ? from[i] : 0.0f;
      if (!args.weights || !there) continue;
      const float* weights = args.weights + (first + lane) % args.kinds * args.length;
      for (int64_t i = 0; i < args.length; ++i) w[i * kWidth + lane] = weights[i];
    }
    float scale[kWidth], least[kWidth];
    if (args.least) q_fit_lanes<true, false>(args, x, w, scale, least);
    else if (args.book == QBook::iq4) q_fit_lanes<false, true>(args, x, w, scale, least);
    else q_fit_lanes<false, false>(args, x, w, scale, least);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      args.scale[first + lane] = scale[lane];
      if (args.least) args.least[first + lane] = least[lane];
    }
  }
}
