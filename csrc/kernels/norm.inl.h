// Kernels over whole rows: norms and softmax. Shares: rows_per_share(cols) rows; norm_backward_weight is cut by columns.

// What a row is shifted and scaled by. The mean is kept in two parts, high and the average of x - high, which the pass over the
// squares yields as well: y then has no error from a mean far larger than the spread, nor from one outlier. `high` is the mean
// of the first few; where that is further from the mean than the spread, it is the mean, in a second pass.
struct RowScale {
  float high, low, rstd;
};
constexpr int64_t kMeanProbe = 64;
template <bool kCenter, class T> static inline RowScale row_scale(const NormArgs<T>& args, int64_t row) {
  const int64_t cols = args.cols, probe = cols < kMeanProbe ? cols : kMeanProbe;
  const double count = (double)cols;
  const T* x = args.x + row * cols;
  RowScale r = {0.0f, 0.0f, 0.0f};
  double variance;
  if constexpr (kCenter) {
    r.high = (float)(blocked_sum(probe, [&](int64_t i, auto part) { return get(x + i, part); }) / (double)probe);
    for (int pass = 0;; ++pass) {
      const Vec high = set1(r.high);
      const Sums sums = blocked_sums(cols, [&](int64_t i, auto part) MG_ALWAYS {
        const Vec d = lanes_or(sub(get(x + i, part), high), part, 0.0f);
        return Terms{d, d, d};
      });
      const double rest = sums.first / count, corrected = sums.second / count - rest * rest;
      r.low = (float)rest;
      args.mean[row] = (float)((double)r.high + rest);
      variance = corrected < 0.0 ? 0.0 : corrected;  // NaN stays
      if (pass == 1 || !(rest * rest > variance)) break;
      r.high = args.mean[row];
    }
  } else {
    variance = blocked_sum(cols, [&](int64_t i, auto part) MG_ALWAYS {
      const Vec v = get(x + i, part);
      return mul(v, v);
    }) / count;
  }
  args.rstd[row] = r.rstd = (float)(1.0 / ::sqrt(variance + args.eps));
  return r;
}

// Row by row: several rows at a time, with one reading of the weight, lose a quarter, because memory then has more streams.
template <bool kCenter, class T> static inline void norm_row(const NormArgs<T>& args, int64_t row) {
  const RowScale scale = row_scale<kCenter>(args, row);
  const Vec high = set1(scale.high), low = set1(scale.low), rstd = set1(scale.rstd);
  const T* x = args.x + row * args.cols;
  T* y = args.y + row * args.cols;
  each_if_narrow<T>(0, args.cols, [&](int64_t i, auto part) MG_ALWAYS {
    auto r = get(x + i, part);
    ask_for(x + args.cols + i, part);
    ask_to_write(y + args.cols + i, part);
    if constexpr (kCenter) r = sub(sub(r, high), low);
    r = mul(r, rstd);
    if (args.weight && args.bias) r = fma(r, get(args.weight + i, part), get(args.bias + i, part));
    else if (args.weight) r = mul(r, get(args.weight + i, part));
    else if (args.bias) r = add(r, get(args.bias + i, part));
    put(y + i, r, part);
  });
}

// y = (x - mean) * rstd * weight + bias. C >= 1; y may alias x.
template <class T> void norm(const NormArgs<T>& args, const Share& share) {
  const Range rows = range_of(share.index, args.rows, rows_per_share(args.cols));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (args.center) norm_row<true>(args, row);
    else norm_row<false>(args, row);
  }
}

// What a row's gradient takes from the row: also averages of g and of g * xhat.
struct RowGradient {
  float mean, rstd, average, along;
};
template <bool kCenter, class T> static inline RowGradient row_gradient(const NormBackwardArgs<T>& args, int64_t row) {
  const T *x = args.x + row * args.cols, *dy = args.dy + row * args.cols;
  RowGradient r = {kCenter ? args.mean[row] : 0.0f, args.rstd[row], 0.0f, 0.0f};
  const Vec mean = set1(r.mean);
  const Sums sums = blocked_sums(args.cols, [&](int64_t i, auto part) MG_ALWAYS {
    Vec g = get(dy + i, part), d = get(x + i, part);
    if (args.weight) g = mul(g, get(args.weight + i, part));
    if constexpr (kCenter) d = sub(d, mean);
    return Terms{g, g, d};
  });
  if (kCenter) r.average = (float)(sums.first / (double)args.cols);
  r.along = (float)(sums.second / (double)args.cols * (double)r.rstd);
  return r;
}

// Rows of a gradient are asked for so many elements before they are used: three streams need more time than one short row.
constexpr int64_t kNormAhead = 512;

// `add_up`: the share has had rows before.
template <bool kCenter, class T>
static inline void norm_backward_row(const NormBackwardArgs<T>& args, int64_t share, int64_t row, bool add_up) {
  const RowGradient of_row = row_gradient<kCenter>(args, row);
  const Vec mean = set1(of_row.mean), rstd = set1(of_row.rstd), average = set1(of_row.average), along = set1(of_row.along);
  const T *x = args.x + row * args.cols, *dy = args.dy + row * args.cols;
  T* dx = args.dx + row * args.cols;
  const int64_t ahead = at_least(args.cols, kNormAhead);
  float* dweight = args.part_dweight ? args.part_dweight + share * args.cols : nullptr;
  float* dbias = args.part_dbias ? args.part_dbias + share * args.cols : nullptr;
  each_if_narrow<T>(0, args.cols, [&](int64_t i, auto part) MG_ALWAYS {
    auto g = get(dy + i, part), normal = get(x + i, part);
    ask_for(dy + ahead + i, part);
    ask_for(x + ahead + i, part);
    ask_to_write(dx + ahead + i, part);
    if constexpr (kCenter) normal = sub(normal, mean);
    normal = mul(normal, rstd);
    if (dweight) put(dweight + i, fma(g, normal, add_up ? get(dweight + i, part) : all_lanes(0.0f, part)), part);
    if (dbias) put(dbias + i, add_up ? add(get(dbias + i, part), g) : g, part);
    if (args.weight) g = mul(g, get(args.weight + i, part));
    if constexpr (kCenter) g = sub(g, average);
    store_or_add(dx + i, mul(fnma(normal, along, g), rstd), args.accumulate_dx, part);
  });
}

// With g = dy * weight and xhat = (x - mean) * rstd: dx (+)= rstd * (g - avg(g) - xhat * avg(g * xhat)); RMSNorm has no
// avg(g). dx may alias dy. The sums for dweight and dbias start anew in each share.
template <class T> void norm_backward(const NormBackwardArgs<T>& args, const Share& share) {
  const Range rows = range_of(share.index, args.rows, rows_per_share(args.cols));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (args.center) norm_backward_row<true>(args, share.index, row, row > rows.begin);
    else norm_backward_row<false>(args, share.index, row, row > rows.begin);
  }
}

// kCount vectors of columns, rows in order: dweight (+)= sum of dy * xhat, dbias (+)= sum of dy.
template <int kCount, class T, class Lanes>
static inline void norm_weight_columns(const NormBackwardArgs<T>& args, int64_t column, Lanes part) {
  Vec weight[kCount], bias[kCount];
  for (int v = 0; v < kCount; ++v) weight[v] = bias[v] = zero();
  for (int64_t row = 0; row < args.rows; ++row) {
    const Vec rstd = set1(args.rstd[row]), mean = set1(args.center ? args.mean[row] : 0.0f);
    const int64_t at = row * args.cols + column;
    for (int v = 0; v < kCount; ++v) {
      const Vec dy = get(args.dy + at + v * kWidth, part);
      const Vec normal = mul(sub(get(args.x + at + v * kWidth, part), mean), rstd);
      weight[v] = fma(dy, normal, weight[v]);
      bias[v] = add(bias[v], dy);
    }
  }
  for (int v = 0; v < kCount; ++v) {
    const int64_t at = column + v * kWidth;
    if (args.dweight) store_or_add(args.dweight + at, weight[v], args.accumulate_dweight, part);
    if (args.dbias) store_or_add(args.dbias + at, bias[v], args.accumulate_dbias, part);
  }
}

// Shares: kColumnBlock columns.
template <class T> void norm_backward_weight(const NormBackwardArgs<T>& args, const Share& share) {
  const Range columns = range_of(share.index, args.cols, kColumnBlock);
  int64_t i = columns.begin;
  for (; i + 4 * kWidth <= columns.end; i += 4 * kWidth) norm_weight_columns<4>(args, i, Full{});
  each_vec(i, columns.end, [&](int64_t j, auto part) { norm_weight_columns<1>(args, j, part); });
}

// Largest scale * x of a row.
template <class T> static inline float scaled_max(const T* x, int64_t n, Vec scale) {
  return row_max(n, [&](int64_t i, auto part) { return lanes_or(mul(get(x + i, part), scale), part, -INFINITY); });
}

// Sum of exp(scale * x - top). The exponentials wait in y, which may alias x, for scale_exp; a narrow y would round them,
// so that there they are taken again.
template <class T> static inline double store_exp(const T* x, T* y, int64_t n, Vec scale, float top) {
  const Vec shift = set1(-top);
  return blocked_sum(n, [&](int64_t i, auto part) {
    const Vec e = exp(fma(get(x + i, part), scale, shift));
    if constexpr (!kNarrow<T>) put(y + i, e, part);
    return lanes_or(e, part, 0.0f);
  });
}
// y = factor * exp(scale * x - top) - less, after store_exp.
template <class T>
static inline void scale_exp(const T* x, T* y, int64_t n, Vec scale, float top, float factor, float less) {
  const Vec by = set1(factor), minus = set1(less), shift = set1(-top);
  each_vec(0, n, [&](int64_t i, auto part) {
    const Vec e = kNarrow<T> ? exp(fma(get(x + i, part), scale, shift)) : get(y + i, part);
    put(y + i, sub(mul(e, by), minus), part);
  });
}

// y = softmax(scale * x). A row that is all -inf, or holds +inf or NaN, gives NaN, as in torch. y may alias x.
template <class T> void softmax(const SoftmaxArgs<T>& args, const Share& share) {
  const int64_t cols = args.cols;
  const Vec scale = set1((float)args.scale);
  const Range rows = range_of(share.index, args.rows, rows_per_share(cols));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* x = args.x + row * cols;
    T* y = args.y + row * cols;
    const float top = scaled_max(x, cols, scale);
    scale_exp(x, y, cols, scale, top, (float)(1.0 / store_exp(x, y, cols, scale, top)), 0.0f);
  }
}

// dx (+)= scale * y * (dy - sum(dy * y)). dx may alias dy.
template <class T> void softmax_backward(const SoftmaxArgs<T>& args, const Share& share) {
  const int64_t cols = args.cols;
  const Vec scale = set1((float)args.scale);
  const Range rows = range_of(share.index, args.rows, rows_per_share(cols));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T *y = args.x + row * cols, *dy = args.dy + row * cols;
    const Vec dot = set1((float)blocked_sum(cols, [&](int64_t i, auto part) {
      return mul(get(dy + i, part), get(y + i, part));
    }));
    each_vec(0, cols, [&](int64_t i, auto part) {
      const Vec r = mul(mul(scale, get(y + i, part)), sub(get(dy + i, part), dot));
      store_or_add(args.y + row * cols + i, r, args.accumulate, part);
    });
  }
}
