// Heads of 4 or 8 numbers over at most kChunk keys, in float: the model of a few thousand parameters. Padded to whole vectors
// such heads are mostly zeros, and a tile costs more than its arithmetic. Here all heads of a vector are turned together;
// then a lane is a row (forward, dq) or a key (dk, dv), and what a row needs of a key is broadcast from where it lies.
// Every number is summed up as the general path does it: these are the same bits. Heads that share keys go the general way.

template <class P> constexpr bool kNarrowHeads = P::kPer == 1 && !kNarrow<typename P::Element>;
template <class T> static inline bool narrow_heads(const AttentionArgs<T>& args) {
  return args.heads == args.kv_heads && args.k_dim == args.v_dim && (args.k_dim == 4 || (args.k_dim == 8 && kWidth >= 8));
}

// Rows [0, count) of `cols` <= kWidth numbers -> columns, one a vector; `probe` is NaN if one was not finite.
static inline void turn_rows(const float* src, int64_t stride, int64_t count, int64_t cols, Vec* columns, Vec& probe) {
  for (int r = 0; r < kWidth; ++r) {
    columns[r] = r >= count ? zero() : cols == kWidth ? load(src + r * stride) : load_n(src + r * stride, cols);
    probe = fma(columns[r], zero(), probe);
  }
  gemm_transpose(columns);
}
static inline void turn_back(Vec* columns, int64_t count, int64_t cols, float* dst, int64_t stride, bool accumulate) {
  gemm_transpose(columns);
  for (int64_t r = 0; r < count; ++r, dst += stride) {
    if (cols == kWidth) store(dst, accumulate ? add(load(dst), columns[r]) : columns[r]);
    else store_n(dst, accumulate ? add(load_n(dst, cols), columns[r]) : columns[r], cols);
  }
}

// The sum of the lanes that v[0 .. kWidth) would have if they lay in one vector, as hsum and lane_sums add them.
static inline Vec halving_sum(Vec* v) {
#pragma GCC unroll 4
  for (int step = kWidth / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) v[i] = add(v[i], v[i + step]);
  return v[0];
}

template <int D, class T> static inline Vec narrow_score(const Vec* x, const T* y) {
  Vec s = zero();
#pragma GCC unroll 8
  for (int d = 0; d < D; ++d) s = fma(x[d], set1(y[d]), s);
  return s;
}

// Up to kWidth rows of one sequence, a lane each, and heads [head, head + count).
template <int D>
static void narrow_rows(const AttentionArgs<float>& args, const QueryRows& q, int64_t head, int64_t count) {
  constexpr int kSteps = kTileStep<AttentionWords<float>>;
  const float* keys = args.k + q.k_start * args.k_stride + head * D;
  const float* values = args.v + q.k_start * args.v_stride + head * D;
  alignas(64) float begin[kWidth] = {}, end[kWidth] = {};
  int64_t low = kChunk, high = 0;
  for (int64_t r = 0; r < q.count; ++r) {
    const Stretch seen = keys_seen(args, q.position + r, q.k_len);
    begin[r] = (float)seen.begin, end[r] = (float)seen.end;
    if (seen.begin >= seen.end) continue;
    low = at_most(low, seen.begin), high = at_least(high, seen.end);
  }
  const int64_t from = low / kSteps * kSteps, to = (high + kSteps - 1) / kSteps * kSteps;
  const bool window = begin[q.count - 1] > (float)low;
  const Vec lowest = set1(-INFINITY), first = load(begin), last = load(end);
  const Vec position = add(load(kLanes), set1((float)q.position));
  Vec query[kWidth], out[kWidth], probe = zero();
  turn_rows(args.q + q.row * args.q_stride + head * D, args.q_stride, q.count, count * D, query, probe);
  for (int64_t h = 0; h < count; ++h) {
    const ScoreRule rule = score_rule(args, head + h);
    const float unit = exponent_unit(rule);
    Vec prob[kChunk], top = lowest;
    for (int64_t k = low; k < high; ++k) {
      Vec s = narrow_score<D>(query + h * D, keys + k * args.k_stride + h * D), bend;
      const Vec key = set1((float)k);
      if (!rule.plain) s = mul(score_of(rule, s, sub(key, position), bend), set1(kLog2E));
      s = select(lt(key, last), s, lowest);
      if (window) s = select(le(first, key), s, lowest);
      prob[k] = s;
      top = max(top, s);
    }
    const Vec by = negate(select(eq(top, lowest), zero(), mul(top, set1(unit))));
    for (int64_t k = from; k < low; ++k) prob[k] = zero();
    for (int64_t k = low; k < high; ++k) prob[k] = power_of_two(fma(prob[k], set1(unit), by));
    for (int64_t k = high; k < to; ++k) prob[k] = zero();
    Vec sums[kWidth], sum[D];
    for (int i = 0; i < kWidth; ++i) sums[i] = zero();
    for (int64_t k = from; k < to; k += kSteps)
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        sums[i] = add(sums[i], kSteps == kWidth ? prob[k + i] : add(prob[k + i], prob[k + kSteps - kWidth + i]));
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) sum[d] = zero();
    for (int64_t k = low; k < high; ++k) {
      const float* value = values + k * args.v_stride + h * D;
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) sum[d] = fma(prob[k], set1(value[d]), sum[d]);
    }
    const Vec total = halving_sum(sums);
    const Mask empty = eq(total, zero());
    const Vec inverse = select(empty, zero(), div(set1(1.0f), total));
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) out[h * D + d] = mul(sum[d], inverse);
    if (!args.lse) continue;
    const Vec lse = select(empty, lowest, fma(mul(top, set1(unit)), set1(kLn2), log(total)));
    store_n(args.lse + (head + h) * args.q_rows + q.row, lse, q.count);
  }
  for (int64_t i = count * D; i < kWidth; ++i) out[i] = zero();
  turn_back(out, q.count, count * D, args.o + q.row * args.o_stride + head * D, args.o_stride, false);
}

// Backward of up to kChunk rows and keys; a lane is a key. One head of up to kWidth / D that are turned together.
struct NarrowBackward {
  const float *queries, *dout;     // of this head, in place
  int64_t q_stride, o_stride;
  const float *keys, *values;      // (D, kChunk)
  const float *delta, *lse;        // (kChunk); of the rows
  float *dkeys, *dvalues;          // (D, kChunk)
  float* dscores;                  // (kChunk, kChunk)
};

template <int D>
static void narrow_head(const ScoreRule& rule, const QueryRows& q, const Spans& spans, const NarrowBackward& b) {
  const Vec lowest = set1(-INFINITY), scale = set1(rule.plain ? rule.scale * kLog2E : kLog2E);
  for (int from = 0; from < q.k_len; from += kWidth) {
    Vec key[D], value[D], dkey[D], dvalue[D];
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) {
      key[d] = load(b.keys + d * kChunk + from);
      value[d] = load(b.values + d * kChunk + from);
      dkey[d] = dvalue[d] = zero();
    }
    for (int64_t r = 0; r < q.count; ++r) {
      const int begin = spans.begin[r], end = spans.end[r];
      if (end <= from || begin >= from + kWidth) {
        store(b.dscores + r * kChunk + from, zero());
        continue;
      }
      const float *query = b.queries + r * b.q_stride, *dout = b.dout + r * b.o_stride;
      const Vec by = set1(b.lse[r] == -INFINITY ? -INFINITY : -b.lse[r] * kLog2E);
      Vec s = narrow_score<D>(key, query), bend = zero();
      if (!rule.plain) s = score_of(rule, s, add(load(kLanes), set1((float)(from - q.position - r))), bend);
      const Vec prob = power_of_two(keep_seen(fma(s, scale, by), lowest, from, begin, end));
      Vec grad = mul(prob, sub(narrow_score<D>(value, dout), set1(b.delta[r])));
      if (rule.capped) grad = mul(grad, fnma(bend, bend, set1(1.0f)));
      grad = keep_seen(grad, zero(), from, begin, end);
      store(b.dscores + r * kChunk + from, grad);
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        dvalue[d] = fma(prob, set1(dout[d]), dvalue[d]);
        dkey[d] = fma(grad, set1(query[d]), dkey[d]);
      }
    }
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) {
      store(b.dkeys + d * kChunk + from, dkey[d]);
      store(b.dvalues + d * kChunk + from, dvalue[d]);
    }
  }
}

// dq of rows [row, row + count), a lane each, before `scale`.
template <int D>
static inline void narrow_dq(const float* dscores, const float* keys, int64_t stride, int64_t k_len, int64_t row, int64_t count,
                             Vec* sum) {
#pragma GCC unroll 8
  for (int d = 0; d < D; ++d) sum[d] = zero();
  for (int64_t from = 0; from < k_len; from += kWidth) {
    Vec by_key[kWidth], probe = zero();
    turn_rows(dscores + row * kChunk + from, kChunk, count, kWidth, by_key, probe);
    for (int64_t k = from; k < at_most(from + kWidth, k_len); ++k)
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) sum[d] = fma(by_key[k - from], set1(keys[k * stride + d]), sum[d]);
  }
}

static inline bool finite_rows(const float* x, int64_t stride, int64_t rows, int64_t cols) {
  Vec probe = zero();
  for (int64_t r = 0; r < rows; ++r, x += stride) each_vec(0, cols, [&](int64_t i, auto part) {
    probe = fma(get(x + i, part), zero(), probe);
  });
  return hsum(probe) == 0.0f;
}

// Rows of one sequence and heads [head, head + count); gives false where the general path must go.
template <int D> static bool narrow_attend(const AttentionArgs<float>& args, const QueryRows& q, int64_t head, int64_t count) {
  if (q.k_len > kChunk) return false;
  // A value that is not finite would reach, times zero, rows that do not see it.
  if (!finite_rows(args.v + q.k_start * args.v_stride + head * D, args.v_stride, q.k_len, count * D)) return false;
  for (int64_t r = 0; r < q.count; r += kWidth)
    for (int64_t h = 0; h < count; h += kWidth / D)
      narrow_rows<D>(args, {q.row + r, at_most(q.count - r, kWidth), q.position + r, q.k_start, q.k_len}, head + h,
                     at_most(count - h, kWidth / D));
  return true;
}

// One sequence and heads [head, head + count) that a vector holds. `scratch` is BackwardScratch's.
template <int D, class Scratch>
static bool narrow_backward(const AttentionBackwardArgs<float>& args, int64_t seq, int64_t head, int64_t count,
                            const Scratch& scratch) {
  const AttentionArgs<float>& fwd = args.fwd;
  const int64_t row = fwd.q_start[seq], rows = fwd.q_start[seq + 1] - row, cols = count * D;
  if (rows > kChunk || fwd.k_len[seq] > kChunk) return false;
  const QueryRows q = rows_of(fwd, seq, row, rows);
  const int64_t q_at = row * fwd.q_stride + head * D, o_at = row * fwd.o_stride + head * D;
  const int64_t k_at = q.k_start * fwd.k_stride + head * D, v_at = q.k_start * fwd.v_stride + head * D;
  if (!finite_rows(fwd.q + q_at, fwd.q_stride, rows, cols) || !finite_rows(fwd.k + k_at, fwd.k_stride, q.k_len, cols) ||
      !finite_rows(args.d_o + o_at, fwd.o_stride, rows, cols))
    return false;
  Vec turned[kWidth], other[kWidth], probe = zero();
  for (int64_t from = 0; from < q.k_len; from += kWidth) {
    const int64_t n = at_most(q.k_len - from, kWidth);
    turn_rows(fwd.k + k_at + from * fwd.k_stride, fwd.k_stride, n, cols, turned, probe);
    turn_rows(fwd.v + v_at + from * fwd.v_stride, fwd.v_stride, n, cols, other, probe);
    for (int64_t i = 0; i < cols; ++i) {
      store(scratch.keys_t + i * kChunk + from, turned[i]);
      store(scratch.values_t + i * kChunk + from, other[i]);
    }
  }
  for (int64_t r = 0; r < rows; r += kWidth) {
    const int64_t n = at_most(rows - r, kWidth);
    turn_rows(fwd.o + o_at + r * fwd.o_stride, fwd.o_stride, n, cols, turned, probe);
    turn_rows(args.d_o + o_at + r * fwd.o_stride, fwd.o_stride, n, cols, other, probe);
    for (int64_t h = 0; h < count; ++h) {
      Vec product[kWidth];
#pragma GCC unroll 16
      for (int d = 0; d < kWidth; ++d) product[d] = d < D ? fma(other[h * D + d], turned[h * D + d], zero()) : zero();
      store(scratch.probs + h * kChunk + r, halving_sum(product));
    }
  }
  Spans spans;
  keys_of_rows(fwd, q, 1, 0, rows, 0, spans);
  Vec dq[kChunk / kWidth][kWidth];
  for (int64_t h = 0; h < count; ++h) {
    NarrowBackward b;
    b.queries = fwd.q + q_at + h * D, b.dout = args.d_o + o_at + h * D;
    b.q_stride = fwd.q_stride, b.o_stride = fwd.o_stride;
    b.keys = scratch.keys_t + h * D * kChunk, b.values = scratch.values_t + h * D * kChunk;
    b.delta = scratch.probs + h * kChunk, b.lse = fwd.lse + (head + h) * fwd.q_rows + row;
    b.dkeys = scratch.dkeys + h * D * kChunk, b.dvalues = scratch.dvalues + h * D * kChunk;
    b.dscores = scratch.dscores;
    narrow_head<D>(score_rule(fwd, head + h), q, spans, b);
    for (int64_t r = 0; r < rows; r += kWidth)
      narrow_dq<D>(b.dscores, fwd.k + k_at + h * D, fwd.k_stride, q.k_len, r, at_most(rows - r, kWidth),
                   dq[r / kWidth] + h * D);
  }
  const Vec scale = set1((float)fwd.scale);
  const auto write = [&](Vec* columns, bool scaled, int64_t n, float* dst, int64_t stride, bool accumulate) {
    for (int64_t i = 0; i < kWidth; ++i) columns[i] = i >= cols ? zero() : scaled ? mul(columns[i], scale) : columns[i];
    turn_back(columns, n, cols, dst, stride, accumulate);
  };
  for (int64_t from = 0; from < q.k_len; from += kWidth) {
    const int64_t n = at_most(q.k_len - from, kWidth);
    for (int64_t i = 0; i < cols; ++i) {
      turned[i] = load(scratch.dkeys + i * kChunk + from);
      other[i] = load(scratch.dvalues + i * kChunk + from);
    }
    write(turned, true, n, args.dk + k_at + from * fwd.k_stride, fwd.k_stride, args.accumulate_dk);
    write(other, false, n, args.dv + v_at + from * fwd.v_stride, fwd.v_stride, args.accumulate_dv);
  }
  for (int64_t r = 0; r < rows; r += kWidth)
    write(dq[r / kWidth], true, at_most(rows - r, kWidth), args.dq + q_at + r * fwd.q_stride, fwd.q_stride, args.accumulate_dq);
  return true;
}

// Heads [head, head + count) of a sequence; gives how many of them were done.
template <class P, class Scratch>
static inline int64_t backward_narrow(const AttentionBackwardArgs<typename P::Element>& args, int64_t seq, int64_t head,
                                      int64_t count, const Scratch& scratch) {
  if constexpr (kNarrowHeads<P>) {
    if (narrow_heads(args.fwd)) {
      const int64_t n = at_most(count, kWidth / args.fwd.k_dim);
      if (args.fwd.k_dim == 4) return narrow_backward<4>(args, seq, head, n, scratch) ? n : 0;
      if constexpr (kWidth >= 8) return narrow_backward<8>(args, seq, head, n, scratch) ? n : 0;
    }
  }
  return 0;
}

template <class P>
static inline bool attend_narrow(const AttentionArgs<typename P::Element>& args, const QueryRows& q, int64_t head, int64_t count) {
  if constexpr (kNarrowHeads<P>) {
    if (narrow_heads(args)) {
      if (args.k_dim == 4) return narrow_attend<4>(args, q, head, count);
      if constexpr (kWidth >= 8) return narrow_attend<8>(args, q, head, count);
    }
  }
  return false;
}
