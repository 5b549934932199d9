// Backward of attention (Dao et al. 2022, algorithm 4): probabilities are computed again from lse, chunk of keys by chunk.
// The chunk is the outer loop, so that dk and dv of a chunk are summed in scratch and its keys are packed once. dq of all
// query rows waits in scratch, in float; the factor `scale` of dq and dk is applied when they are written.

struct BackwardScratch {
  float *keys_t, *values_t, *keys, *dkeys, *dvalues;          // of the chunk; _t: words along, turned; keys: words across
  float *probs, *dscores;                                     // (kBackwardRows, kChunk)
  float *probs_across, *dscores_across, *dscores_along;       // as words: the same memory where a word is a float
  float *dq_sums, *delta, *lse;                               // of every head of the group and row of the sequence
  float* packed;                                              // their query rows, packed
};

// Query rows of a head as words: along, and across.
struct BackwardRows {
  float *queries, *dout, *queries_across, *dout_across;
  bool finite_queries, finite_dout;
};

template <class P, class T> static inline BackwardScratch backward_scratch(const AttentionArgs<T>& args, void* memory) {
  const int64_t k_width = padded(args.k_dim), v_width = padded(args.v_dim), rows = args.q_rows * (args.heads / args.kv_heads);
  BackwardScratch s;
  float* next = (float*)memory;
  const auto take = [&](int64_t floats) {
    float* p = next;
    next += floats;
    return p;
  };
  s.keys_t = take(kChunk * k_width);
  s.values_t = take(kChunk * v_width);
  s.keys = take(kChunk * k_width);
  s.dkeys = take(kChunk * k_width);
  s.dvalues = take(kChunk * v_width);
  s.probs = take(kBackwardRows * kChunk);
  s.dscores = take(kBackwardRows * kChunk);
  constexpr bool kPairs = P::kPer > 1;
  s.probs_across = kPairs ? take(kBackwardRows * kChunk / 2) : s.probs;
  s.dscores_across = kPairs ? take(kBackwardRows * kChunk / 2) : s.dscores;
  s.dscores_along = kPairs ? take(kBackwardRows * kChunk / 2) : s.dscores;
  s.dq_sums = take(rows * k_width);
  s.delta = take(padded(rows));
  s.lse = take(padded(rows));
  s.packed = take(0);
  return s;
}
// Memory of kBackwardRows rows, with what says where they are: packed_rows_floats().
template <class P, class T> static inline BackwardRows rows_in(const AttentionArgs<T>& args, float* memory) {
  BackwardRows rows = {memory + kPackedRowsHead, nullptr, nullptr, nullptr, true, true};
  rows.queries_across = rows.queries + (P::kPer > 1 ? kBackwardRows * padded((args.k_dim + 1) / 2) : 0);
  rows.dout = rows.queries_across + kBackwardRows / P::kPer * padded(args.k_dim);
  rows.dout_across = rows.dout + (P::kPer > 1 ? kBackwardRows * padded((args.v_dim + 1) / 2) : 0);
  return rows;
}

// `ahead`: queries to ask for.
template <class P>
static inline BackwardRows pack_rows(const AttentionBackwardArgs<typename P::Element>& args, const QueryRows& q, int64_t head,
                                     int64_t ahead, BackwardRows rows) {
  const AttentionArgs<typename P::Element>& fwd = args.fwd;
  const int64_t k_width = padded(fwd.k_dim), v_width = padded(fwd.v_dim);
  const auto* queries = fwd.q + q.row * fwd.q_stride + head * fwd.k_dim;
  const auto* dout = args.d_o + q.row * fwd.o_stride + head * fwd.v_dim;
  rows.finite_queries = P::pack_across(queries, fwd.q_stride, q.count, fwd.k_dim, rows.queries_across, k_width, ahead);
  rows.finite_dout = P::pack_across(dout, fwd.o_stride, q.count, fwd.v_dim, rows.dout_across, v_width, 0);
  if (P::kPer > 1) {
    pack_along<P>(queries, fwd.q_stride, q.count, fwd.k_dim, rows.queries, padded((fwd.k_dim + P::kPer - 1) / P::kPer));
    pack_along<P>(dout, fwd.o_stride, q.count, fwd.v_dim, rows.dout, padded((fwd.v_dim + P::kPer - 1) / P::kPer));
  }
  if constexpr (kTiles<P>) {
    clear_unpacked(rows.queries_across, q.count, k_width);
    clear_unpacked(rows.dout_across, q.count, v_width);
  }
  return rows;
}

// Raw products and gradients of probabilities, rows of a register tile -> probabilities and gradients of the raw products
// (but for the factor `scale`), in place; zero where a row does not see.
template <class P>
static inline void dscores_tile(const ScoreRule& rule, const float* offsets, int64_t rows, bool whole, const Spans& keys,
                                const float* lse, const float* delta, float* probs, float* dscores, float* along) {
  const Vec lowest = set1(-INFINITY), scale = set1(rule.plain ? rule.scale * kLog2E : kLog2E);
  for (int64_t r = 0; r < rows; ++r) {
    const int begin = keys.begin[r], end = keys.end[r];
    float *p = probs + r * kChunk, *d = dscores + r * kChunk, *w = along + r * (kChunk / P::kPer);
    // A row of nothing but -inf has no probabilities.
    const Vec by = set1(lse[r] == -INFINITY ? -INFINITY : -lse[r] * kLog2E), less = set1(delta[r]);
    if (whole && rule.plain) {
#pragma GCC unroll 2
      for (int i = 0; i < kChunk; i += kSoftmaxStep) {
        const Vec a = probability<P>(fma(load(p + i), scale, by)), b = probability<P>(fma(load(p + i + kWidth), scale, by));
        const Vec da = mul(a, sub(load(d + i), less)), db = mul(b, sub(load(d + i + kWidth), less));
        store(p + i, a);
        store(p + i + kWidth, b);
        if (P::kPer > 1) store(d + i, da), store(d + i + kWidth, db);
        P::store_along(w, i, da, db);
      }
      continue;
    }
    for (int i = 0; i < kChunk; i += kSoftmaxStep) {
      Vec both[2];
      for (int half = 0; half < 2; ++half) {
        const int at = i + half * kWidth;
        if (at >= end || at + kWidth <= begin) {
          both[half] = zero();
          store(p + at, zero());
          if (P::kPer > 1) store(d + at, zero());
          continue;
        }
        Vec s = load(p + at), bend = zero();
        if (!rule.plain) s = score_of(rule, s, add(load(kLanes), set1(offsets[r] + (float)at)), bend);
        const Vec prob = probability<P>(keep_seen(fma(s, scale, by), lowest, at, begin, end));
        Vec grad = mul(prob, sub(load(d + at), less));
        if (rule.capped) grad = mul(grad, fnma(bend, bend, set1(1.0f)));
        both[half] = keep_seen(grad, zero(), at, begin, end);
        store(p + at, prob);
        if (P::kPer > 1) store(d + at, both[half]);
      }
      P::store_along(w, i, both[0], both[1]);
    }
  }
}

// delta = sum(dout * out), the gradient that the normalisation of the softmax takes back.
template <class T> static inline float row_delta(const T* dout, const T* out, int64_t width, int64_t ahead) {
  Vec sum = zero();
  ask_for(dout + ahead, width);
  ask_for(out + ahead, width);
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) sum = fma(load(dout + i), load(out + i), sum);
  if (i < width) sum = fma(load_n(dout + i, width - i), load_n(out + i, width - i), sum);
  return hsum(sum);
}

// Rows of queries that a step of dk and dv takes.
template <class P> constexpr int64_t kRowStep = kTiles<P> ? 2 * kWidth : kSpanStep;

// Query rows of one head against one chunk of keys; dq_sums, delta and lse are of the first of these rows.
template <class P>
static void backward_tile(const AttentionBackwardArgs<typename P::Element>& args, const QueryRows& q, int64_t head,
                          int64_t chunk, int64_t keys, float* dq_sums, const float* delta, const float* lse,
                          bool finite_keys, const BackwardRows& packed, const BackwardScratch& s) {
  const AttentionArgs<typename P::Element>& fwd = args.fwd;
  const int64_t k_words = (fwd.k_dim + P::kPer - 1) / P::kPer, v_words = (fwd.v_dim + P::kPer - 1) / P::kPer;
  const int64_t k_step = padded(k_words), v_step = padded(v_words), k_width = padded(fwd.k_dim), v_width = padded(fwd.v_dim);
  const ScoreRule rule = score_rule(fwd, head);
  const bool all = all_seen(fwd, q, chunk, keys);
  Spans spans;
  if (all) same_spans(kTallPadded, (int)keys, spans);
  const int64_t most = all || kTiles<P> ? kScoreRows<P> : kMaskedRows, tiles = parts_of(q.count, most);
  for (int64_t i = 0; i < tiles; ++i) {
    const auto [low, high] = part_of(q.count, tiles, i);
    if (!all) keys_of_rows(fwd, q, 1, low, high, chunk, spans);
    float *probs = s.probs + low * kChunk, *dscores = s.dscores + low * kChunk;
    chunk_products<P>(packed.queries + low * k_step, k_step, k_words, s.keys_t, high - low, spans.begin, spans.end, probs);
    chunk_products<P>(packed.dout + low * v_step, v_step, v_words, s.values_t, high - low, spans.begin, spans.end, dscores);
    float offsets[kTallPadded];
    for (int64_t r = low; r < high; ++r) offsets[r - low] = (float)(chunk - (q.position + r));
    float* along = s.dscores_along + low * (kChunk / P::kPer);
    dscores_tile<P>(rule, offsets, high - low, all && keys == kChunk, spans, lse + low, delta + low, probs, dscores, along);
    const Product<P, false> dq = {along, kChunk / P::kPer, s.keys, k_width, k_width, dq_sums + low * k_width, k_width};
    dq.run(high - low, most, spans.begin, spans.end, finite_keys, kUnchanged);
  }
  // Rows that dk and dv may take along.
  constexpr int64_t kStep = kRowStep<P>;
  const int64_t unused = (kStep - q.count % kStep) % kStep;
  clear(s.probs + q.count * kChunk, unused * kChunk);
  clear(s.dscores + q.count * kChunk, unused * kChunk);
  if (P::kPer > 1)
    for (int64_t r = 0; r < q.count + unused; r += 2)
      for (int64_t i = 0; i < kChunk; i += kWidth) {
        const int64_t at = r * kChunk + i, word = r / 2 * kChunk + i;
        store(s.probs_across + word, P::across_rows(load(s.probs + at), load(s.probs + at + kChunk)));
        store(s.dscores_across + word, P::across_rows(load(s.dscores + at), load(s.dscores + at + kChunk)));
      }
  if (all) same_spans(keys, (int)q.count, spans);
  else rows_of_keys(fwd, q, chunk, keys, spans);
  const Product<P, true> dv = {s.probs_across, kChunk, packed.dout_across, v_width, v_width, s.dvalues, v_width};
  dv.run(keys, most, spans.begin, spans.end, packed.finite_dout, kUnchanged);
  const Product<P, true> dk = {s.dscores_across, kChunk, packed.queries_across, k_width, k_width, s.dkeys, k_width};
  dk.run(keys, most, spans.begin, spans.end, packed.finite_queries, kUnchanged);
}

template <class P>
static void attention_backward_unit(const AttentionBackwardArgs<typename P::Element>& args, int64_t unit,
                                    const BackwardScratch& s) {
  const AttentionArgs<typename P::Element>& fwd = args.fwd;
  const int64_t seq = unit / fwd.kv_heads, group = unit % fwd.kv_heads;
  const int64_t each = fwd.heads / fwd.kv_heads, k_start = fwd.k_start[seq], k_len = fwd.k_len[seq];
  const int64_t begin = fwd.q_start[seq], end = fwd.q_start[seq + 1], rows = end - begin;
  const int64_t k_width = padded(fwd.k_dim), v_width = padded(fwd.v_dim);
  const float scale = (float)fwd.scale;
  const NextUnit next = next_unit(fwd, seq, group);
  for (int64_t h = 0; h < each; ++h)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t head = group * each + h, at = (begin + r) * fwd.o_stride + head * fwd.v_dim;
      s.delta[h * rows + r] = row_delta(args.d_o + at, fwd.o + at, fwd.v_dim, next.o);
      s.lse[h * rows + r] = fwd.lse[head * fwd.q_rows + begin + r];
    }
  clear(s.dq_sums, each * rows * k_width);
  // Rows of the first block alone: dq is written after all keys, when more would have left the cache.
  if (rows > 0)  // without queries dq may be null
    ask_to_write_rows(args.dq + begin * fwd.q_stride + group * each * fwd.k_dim, fwd.q_stride, at_most(rows, kBackwardRows),
                      each * fwd.k_dim);
  const auto rows_from = [&](int64_t row) {
    return QueryRows{begin + row, at_most(rows - row, kBackwardRows), k_len - rows + row, k_start, k_len};
  };
  // Rows are packed once: those of a head lie far apart, in few sets of the caches.
  const int64_t blocks = parts_of(rows, kBackwardRows);
  const auto kept = [&](int64_t h, int64_t row) {
    return (BackwardRows*)(s.packed + (h * blocks + row / kBackwardRows) * packed_rows_floats(fwd.k_dim, fwd.v_dim));
  };
  for (int64_t h = 0; h < each; ++h)
    for (int64_t row = 0; row < rows; row += kBackwardRows) {
      BackwardRows* packed = kept(h, row);
      *packed = pack_rows<P>(args, rows_from(row), group * each + h, next.q, rows_in<P>(fwd, (float*)packed));
    }
  for (int64_t chunk = 0; chunk < k_len; chunk += kChunk) {
    const int64_t keys = at_most(k_len - chunk, kChunk);
    const int64_t k_at = (k_start + chunk) * fwd.k_stride + group * fwd.k_dim;
    const int64_t v_at = (k_start + chunk) * fwd.v_stride + group * fwd.v_dim;
    const bool more = chunk + kChunk < k_len;
    pack_turned<P>(fwd.k + k_at, fwd.k_stride, keys, fwd.k_dim, s.keys_t, ahead_of_chunk(chunk, more, fwd.k_stride, next.k));
    pack_turned<P>(fwd.v + v_at, fwd.v_stride, keys, fwd.v_dim, s.values_t, ahead_of_chunk(chunk, more, fwd.v_stride, next.v));
    const bool finite_keys = P::pack_across(fwd.k + k_at, fwd.k_stride, keys, fwd.k_dim, s.keys, k_width, 0);
    ask_to_write_rows(args.dk + k_at, fwd.k_stride, keys, fwd.k_dim);
    ask_to_write_rows(args.dv + v_at, fwd.v_stride, keys, fwd.v_dim);
    if constexpr (kTiles<P>) clear_unpacked(s.keys, keys, k_width);
    clear(s.dkeys, keys * k_width);
    clear(s.dvalues, keys * v_width);
    for (int64_t h = 0; h < each; ++h)
      for (int64_t row = 0; row < rows; row += kBackwardRows) {
        const QueryRows q = rows_from(row);
        const Stretch seen = chunks_seen(fwd, q);
        if (chunk < seen.begin || chunk >= seen.end) continue;
        const int64_t at = h * rows + row, head = group * each + h;
        backward_tile<P>(args, q, head, chunk, keys, s.dq_sums + at * k_width, s.delta + at, s.lse + at, finite_keys, *kept(h, row), s);
      }
    write_rows(s.dkeys, k_width, keys, fwd.k_dim, &scale, 0, args.dk + k_at, fwd.k_stride, args.accumulate_dk);
    write_rows(s.dvalues, v_width, keys, fwd.v_dim, kUnchanged, 0, args.dv + v_at, fwd.v_stride, args.accumulate_dv);
  }
  for (int64_t h = 0; h < each && rows > 0; ++h)
    write_rows(s.dq_sums + h * rows * k_width, k_width, rows, fwd.k_dim, &scale, 0,
               args.dq + begin * fwd.q_stride + (group * each + h) * fwd.k_dim, fwd.q_stride, args.accumulate_dq);
}

// Zeros for heads [group, group + groups) of keys outside all sequences.
template <class T>
static inline void clear_gaps(const AttentionBackwardArgs<T>& args, int64_t seq, bool in_order, int64_t group, int64_t groups) {
  each_key_gap(args.fwd, seq, in_order, [&](int64_t begin, int64_t end) {
    const auto rows = [&](T* p, int64_t stride, int64_t width) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t i = group * width; i < (group + groups) * width; ++i) p[r * stride + i] = T{};
    };
    if (!args.accumulate_dk) rows(args.dk, args.fwd.k_stride, args.fwd.k_dim);
    if (!args.accumulate_dv) rows(args.dv, args.fwd.v_stride, args.fwd.v_dim);
  });
}

template <class P>
static void attention_backward_of(const AttentionBackwardArgs<typename P::Element>& args, const Share& share) {
  const BackwardScratch scratch = backward_scratch<P>(args.fwd, share.scratch);
  if constexpr (kTiles<P>) {
    clear_words<P>(scratch.keys_t, args.fwd.k_dim);
    clear_words<P>(scratch.values_t, args.fwd.v_dim);
  }
  const Range range = range_of(share.index, args.fwd.seqs * args.fwd.kv_heads, backward_units_per_share(args));
  const bool in_order = keys_in_order(args.fwd);
  for (int64_t unit = range.begin; unit < range.end;) {
    const int64_t seq = unit / args.fwd.kv_heads, group = unit % args.fwd.kv_heads;
    const int64_t groups = at_most(args.fwd.kv_heads - group, range.end - unit);
    int64_t done = backward_narrow<P>(args, seq, group, groups, scratch);
    if (done == 0) {
      attention_backward_unit<P>(args, unit, scratch);
      done = 1;
    }
    clear_gaps(args, seq, in_order, group, done);
    unit += done;
  }
  if (args.fwd.seqs == 0 && share.index == 0) clear_gaps(args, 0, in_order, 0, args.fwd.kv_heads);
}
