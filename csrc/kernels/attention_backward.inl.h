// Backward of attention (Dao et al. 2022, algorithm 4): probabilities are computed again from lse, chunk of keys by chunk.
// The chunk is the outer loop, so that dk and dv of a chunk are summed in scratch and its transposes are made once.

struct BackwardScratch {
  float *keys, *keys_t, *values_t, *dkeys, *dvalues;  // of the chunk
  float *queries, *dout, *dqueries;                   // of the query tile
  float *probs, *dscores, *bends;                     // (kTile, kChunk)
  float* dq_sums;  // where storage is narrow: dq of every query row and head of the group, summed over the chunks
};

template <class T> static inline BackwardScratch backward_scratch(const AttentionArgs<T>& args, void* memory) {
  const int64_t k_width = padded(args.k_dim), v_width = padded(args.v_dim);
  BackwardScratch s;
  s.keys = (float*)memory;
  s.keys_t = s.keys + kChunk * k_width;
  s.values_t = s.keys_t + kChunk * args.k_dim;
  s.dkeys = s.values_t + kChunk * args.v_dim;
  s.dvalues = s.dkeys + kChunk * k_width;
  s.queries = s.dvalues + kChunk * v_width;
  s.dout = s.queries + kTile * k_width;
  s.dqueries = s.dout + kTile * v_width;
  s.probs = s.dqueries + kTile * k_width;
  s.dscores = s.probs + kTile * kChunk;
  s.bends = s.dscores + kTile * kChunk;
  s.dq_sums = s.bends + kTile * kChunk;
  return s;
}

// Raw scores -> probabilities, in place; the bends of the soft cap are kept for dscores_chunk.
static inline void probs_chunk(const ScoreRule& rule, const QueryRows& q, int64_t chunk, const Spans& keys, const float* lse,
                               float* probs, float* bends) {
  const Vec lowest = set1(-INFINITY);
  for (int r = 0; r < q.count; ++r) {
    const int begin = keys.begin[r], end = keys.end[r];
    const float distance = (float)(chunk - (q.position + r));
    const bool empty = lse[r] == -INFINITY;
    const Vec by = set1(lse[r]);
    for (int i = begin / kWidth * kWidth; i < end; i += kWidth) {
      Vec bend = zero();
      const Vec raw = load(probs + r * kChunk + i);
      Vec s = sub(score_of(rule, raw, add(load(kLanes), set1(distance + (float)i)), bend), by);
      if (empty) s = lowest;
      store(probs + r * kChunk + i, exp(keep_seen(s, lowest, i, begin, end)));
      if (rule.capped) store(bends + r * kChunk + i, bend);
    }
  }
}

// Gradient of the probabilities -> gradient of the raw products, in place.
static inline void dscores_chunk(const ScoreRule& rule, int rows, const Spans& keys, const float* delta, const float* probs,
                                 const float* bends, float* dscores) {
  for (int r = 0; r < rows; ++r) {
    const Vec shift = set1(delta[r]), scale = set1(rule.scale);
    for (int i = keys.begin[r] / kWidth * kWidth; i < keys.end[r]; i += kWidth) {
      const int at = r * kChunk + i;
      Vec d = mul(mul(load(probs + at), sub(load(dscores + at), shift)), scale);
      if (rule.capped) d = mul(d, fnma(load(bends + at), load(bends + at), set1(1.0f)));
      store(dscores + at, d);
    }
  }
}

// delta = sum(dout * out), the gradient that the normalisation of the softmax takes back.
template <class T>
static inline void row_deltas(const float* dout, const T* out, int64_t out_stride, int rows, int64_t width, float* delta) {
  const int64_t ld = padded(width);
  for (int r = 0; r < rows; ++r, dout += ld, out += out_stride) {
    Vec sum = zero();
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) sum = fma(load(dout + i), load(out + i), sum);
    if (i < width) sum = fma(load(dout + i), load_n(out + i, width - i), sum);
    delta[r] = hsum(sum);
  }
}

// One query tile of one head against one chunk of keys.
template <class T>
static inline void backward_tile(const AttentionBackwardArgs<T>& args, const QueryRows& q, int64_t head, int64_t chunk,
                                 int keys, bool first, float* dq_sums, const BackwardScratch& s) {
  const AttentionArgs<T>& fwd = args.fwd;
  const int64_t k_width = padded(fwd.k_dim), v_width = padded(fwd.v_dim);
  const int64_t q_at = q.row * fwd.q_stride + head * fwd.k_dim, o_at = q.row * fwd.o_stride + head * fwd.v_dim;
  const ScoreRule rule = score_rule(fwd, head);
  Spans by_row, by_key;
  float delta[kTile];
  keys_of_rows(fwd, q, chunk, by_row);
  rows_of_keys(fwd, q, chunk, keys, by_key);
  copy_rows(fwd.q + q_at, fwd.q_stride, q.count, fwd.k_dim, s.queries);
  copy_rows(args.d_o + o_at, fwd.o_stride, q.count, fwd.v_dim, s.dout);
  row_deltas(s.dout, fwd.o + o_at, fwd.o_stride, q.count, fwd.v_dim, delta);

  scores(s.queries, k_width, fwd.k_dim, s.keys_t, s.probs, q.count, by_row);
  probs_chunk(rule, q, chunk, by_row, fwd.lse + head * fwd.q_rows + q.row, s.probs, s.bends);
  scores(s.dout, v_width, fwd.v_dim, s.values_t, s.dscores, q.count, by_row);
  dscores_chunk(rule, q.count, by_row, delta, s.probs, s.bends, s.dscores);
  product(s.probs, 1, kChunk, s.dout, v_width, v_width, s.dvalues, v_width, true, keys, by_key.begin, by_key.end);
  product(s.dscores, 1, kChunk, s.queries, k_width, k_width, s.dkeys, k_width, true, keys, by_key.begin, by_key.end);
  product(s.dscores, kChunk, 1, s.keys, k_width, k_width, s.dqueries, k_width, false, q.count, by_row.begin, by_row.end);
  if (kNarrow<T>) write_rows(s.dqueries, q.count, k_width, nullptr, dq_sums, k_width, !first);
  else write_rows(s.dqueries, q.count, fwd.k_dim, nullptr, args.dq + q_at, fwd.q_stride, !first || args.accumulate_dq);
}

// Rows without any key get no gradient.
template <class T>
static inline void clear_unseeing(const AttentionBackwardArgs<T>& args, const QueryRows& q, int64_t head) {
  const AttentionArgs<T>& fwd = args.fwd;
  const int64_t width = fwd.k_dim;
  T* dq = args.dq + q.row * fwd.q_stride + head * width;
  for (int r = 0; r < q.count; ++r)
    for (int64_t i = 0; i < width; i += kWidth)
      store_n(dq + r * fwd.q_stride + i, zero(), width - i < kWidth ? width - i : kWidth);
}

template <class T>
static inline void attention_backward_unit(const AttentionBackwardArgs<T>& args, int64_t unit, void* memory) {
  const AttentionArgs<T>& fwd = args.fwd;
  const int64_t seq = unit / fwd.kv_heads, group = unit % fwd.kv_heads;
  const int64_t group_heads = fwd.heads / fwd.kv_heads, k_start = fwd.k_start[seq], k_len = fwd.k_len[seq];
  const int64_t begin = fwd.q_start[seq], end = fwd.q_start[seq + 1];
  const int64_t k_width = padded(fwd.k_dim), v_width = padded(fwd.v_dim);
  const BackwardScratch s = backward_scratch(fwd, memory);
  const auto tile_at = [&](int64_t row) {
    return QueryRows{row, (int)clamped(end - row, 0, kTile), k_len - end + row, k_start, k_len};
  };
  for (int64_t row = begin; row < end && !args.accumulate_dq; row += kTile) {
    const QueryRows q = tile_at(row);
    const Stretch seen = chunks_seen(fwd, q);
    for (int64_t h = 0; h < group_heads && seen.begin >= seen.end; ++h) clear_unseeing(args, q, group * group_heads + h);
  }
  for (int64_t chunk = 0; chunk < k_len; chunk += kChunk) {
    const int keys = (int)clamped(k_len - chunk, 0, kChunk);
    const int64_t k_at = (k_start + chunk) * fwd.k_stride + group * fwd.k_dim;
    const int64_t v_at = (k_start + chunk) * fwd.v_stride + group * fwd.v_dim;
    copy_rows(fwd.k + k_at, fwd.k_stride, keys, fwd.k_dim, s.keys);
    transpose_chunk(fwd.k + k_at, fwd.k_stride, keys, fwd.k_dim, s.keys_t);
    transpose_chunk(fwd.v + v_at, fwd.v_stride, keys, fwd.v_dim, s.values_t);
    clear(s.dkeys, keys * k_width);
    clear(s.dvalues, keys * v_width);
    for (int64_t h = 0; h < group_heads; ++h)
      for (int64_t row = begin; row < end; row += kTile) {
        const QueryRows q = tile_at(row);
        const Stretch seen = chunks_seen(fwd, q);
        if (chunk < seen.begin || chunk >= seen.end) continue;
        float* sums = s.dq_sums + (h * (end - begin) + row - begin) * k_width;
        backward_tile(args, q, group * group_heads + h, chunk, keys, chunk == seen.begin, sums, s);
      }
    write_rows(s.dkeys, keys, fwd.k_dim, nullptr, args.dk + k_at, fwd.k_stride, args.accumulate_dk);
    write_rows(s.dvalues, keys, fwd.v_dim, nullptr, args.dv + v_at, fwd.v_stride, args.accumulate_dv);
  }
  for (int64_t row = begin; kNarrow<T> && row < end; row += kTile) {
    const QueryRows q = tile_at(row);
    const Stretch seen = chunks_seen(fwd, q);
    for (int64_t h = 0; h < group_heads && seen.begin < seen.end; ++h)
      write_rows(s.dq_sums + (h * (end - begin) + row - begin) * k_width, q.count, fwd.k_dim, nullptr,
                 args.dq + row * fwd.q_stride + (group * group_heads + h) * fwd.k_dim, fwd.q_stride, args.accumulate_dq);
  }
}

template <class T> void attention_backward(const AttentionBackwardArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.fwd.seqs * args.fwd.kv_heads, backward_units_per_share(args));
  for (int64_t unit = range.begin; unit < range.end; ++unit) attention_backward_unit(args, unit, share.scratch);
}
