// Attention. A share is kQueryTile packed query rows of one head; it walks the sequences that these rows belong to.
// What makes a row's bits its own: see args.h and product_tile.
#include "kernels/attention_tile.inl.h"
#include "kernels/attention_mask.inl.h"

struct ForwardScratch {
  float *keys, *values, *probs, *out;
  float* queries;  // widened, where storage is narrow
};

// Running maximum and sum of each row of the tile.
struct OnlineSoftmax {
  alignas(64) float max[kTile], sum[kTile], rescale[kTile];
};

// Scores -> probabilities relative to the new maximum, in place. Skipping a row that sees nothing here gives the same
// bits as taking it along: its factor is exp(0) = 1 and it adds zeros.
static inline void softmax_chunk(const ScoreRule& rule, const QueryRows& q, int64_t chunk, const Spans& keys, float* probs,
                                 OnlineSoftmax& state) {
  const Vec lowest = set1(-INFINITY);
  alignas(64) float shift[kTile], added[kTile];
  for (int r = 0; r < q.count; ++r) {
    float* p = probs + r * kChunk;
    const int begin = keys.begin[r], end = keys.end[r];
    const float distance = (float)(chunk - (q.position + r));
    Vec top = lowest;
    for (int i = begin / kWidth * kWidth; i < end; i += kWidth) {
      Vec bend;
      Vec s = score_of(rule, load(p + i), add(load(kLanes), set1(distance + (float)i)), bend);
      s = keep_seen(s, lowest, i, begin, end);
      store(p + i, s);
      top = max(top, s);
    }
    const float here = begin < end ? hmax(top) : -INFINITY;
    shift[r] = here > state.max[r] ? here : state.max[r];
  }
  for (int r = q.count; r < kTile; ++r) shift[r] = state.max[r];
  for (int r = 0; r < q.count; r += kWidth) {
    const Vec new_max = load(shift + r);
    // -inf - -inf would be NaN where nothing but -inf was seen.
    const Vec by = select(eq(new_max, lowest), zero(), new_max);
    store(state.rescale + r, exp(sub(load(state.max + r), by)));
    store(state.max + r, new_max);
    store(shift + r, by);
  }
  for (int r = 0; r < q.count; ++r) {
    float* p = probs + r * kChunk;
    const int begin = keys.begin[r], end = keys.end[r];
    const Vec by = set1(shift[r]);
    Vec total = zero();
    for (int i = begin / kWidth * kWidth; i < end; i += kWidth) {
      const Vec e = exp(sub(load(p + i), by));
      store(p + i, e);
      total = add(total, e);
    }
    added[r] = begin < end ? hsum(total) : 0.0f;
  }
  for (int r = q.count; r < kTile; ++r) added[r] = 0.0f;
  for (int r = 0; r < q.count; r += kWidth)
    store(state.sum + r, fma(load(state.sum + r), load(state.rescale + r), load(added + r)));
}

template <class T>
static inline void attention_rows(const AttentionArgs<T>& args, const QueryRows& q, int64_t head,
                                  const ForwardScratch& scratch) {
  const int64_t group = head / (args.heads / args.kv_heads), width = padded(args.v_dim);
  const T* q_rows = args.q + q.row * args.q_stride + head * args.k_dim;
  const T* keys = args.k + q.k_start * args.k_stride + group * args.k_dim;
  const T* values = args.v + q.k_start * args.v_stride + group * args.v_dim;
  const float* queries;
  int64_t q_stride;
  if constexpr (kNarrow<T>) {
    copy_rows(q_rows, args.q_stride, q.count, args.k_dim, scratch.queries);
    queries = scratch.queries;
    q_stride = padded(args.k_dim);
  } else {
    queries = q_rows;
    q_stride = args.q_stride;
  }
  const ScoreRule rule = score_rule(args, head);
  OnlineSoftmax state;
  for (int r = 0; r < kTile; ++r) {
    state.max[r] = -INFINITY;
    state.sum[r] = 0.0f;
  }
  const Stretch seen = chunks_seen(args, q);
  const bool copy_values = kNarrow<T> || q.count > 1;  // a single row reads them once
  for (int64_t chunk = seen.begin; chunk < seen.end; chunk += kChunk) {
    const int count = (int)clamped(seen.end - chunk, 0, kChunk);
    Spans spans;
    keys_of_rows(args, q, chunk, spans);
    transpose_chunk(keys + chunk * args.k_stride, args.k_stride, count, args.k_dim, scratch.keys);
    scores(queries, q_stride, args.k_dim, scratch.keys, scratch.probs, q.count, spans);
    softmax_chunk(rule, q, chunk, spans, scratch.probs, state);
    const bool first = chunk == seen.begin;
    for (int r = 0; r < q.count && !first; ++r)
      if (state.rescale[r] != 1.0f)
        for (int64_t i = 0; i < width; i += kWidth)
          store(scratch.out + r * width + i, mul(load(scratch.out + r * width + i), set1(state.rescale[r])));
    const T* chunk_values = values + chunk * args.v_stride;
    if (copy_values) {
      copy_rows(chunk_values, args.v_stride, count, args.v_dim, scratch.values);
      product(scratch.probs, kChunk, 1, scratch.values, width, width, scratch.out, width, !first, q.count, spans.begin, spans.end);
    } else if constexpr (!kNarrow<T>) {
      product(scratch.probs, kChunk, 1, chunk_values, args.v_stride, args.v_dim, scratch.out, width, !first, q.count,
              spans.begin, spans.end);
    }
  }
  if (seen.begin >= seen.end) clear(scratch.out, q.count * width);
  alignas(64) float lse[kTile], inverse[kTile];
  for (int r = 0; r < q.count; r += kWidth) {
    const Vec sum = load(state.sum + r);
    const Mask empty = eq(sum, zero());
    store(inverse + r, select(empty, zero(), div(set1(1.0f), sum)));
    store(lse + r, select(empty, set1(-INFINITY), add(load(state.max + r), log(sum))));
  }
  write_rows(scratch.out, q.count, args.v_dim, inverse, args.o + q.row * args.o_stride + head * args.v_dim, args.o_stride, false);
  for (int r = 0; args.lse && r < q.count; ++r) args.lse[head * args.q_rows + q.row + r] = lse[r];
}

template <class T> static inline void attention_unit(const AttentionArgs<T>& args, int64_t unit, void* memory) {
  const int64_t head = unit % args.heads, begin = unit / args.heads * kTile;
  const int64_t end = begin + kTile < args.q_rows ? begin + kTile : args.q_rows;
  ForwardScratch scratch;
  scratch.keys = (float*)memory;
  scratch.values = scratch.keys + args.k_dim * kChunk;
  scratch.probs = scratch.values + kChunk * padded(args.v_dim);
  scratch.out = scratch.probs + kTile * kChunk;
  scratch.queries = scratch.out + kTile * padded(args.v_dim);
  int64_t seq = 0;
  for (int64_t above = args.seqs; seq < above;) {  // the first sequence that ends after `begin`
    const int64_t middle = (seq + above) / 2;
    if (args.q_start[middle + 1] > begin) above = middle;
    else seq = middle + 1;
  }
  for (; seq < args.seqs && args.q_start[seq] < end; ++seq) {
    const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
    const int64_t from = first > begin ? first : begin, to = last < end ? last : end;
    if (from >= to) continue;
    const int64_t k_len = args.k_len[seq];
    attention_rows(args, {from, (int)(to - from), k_len - last + from, args.k_start[seq], k_len}, head, scratch);
  }
}

template <class T> void attention(const AttentionArgs<T>& args, const Share& share) {
  const int64_t units = (args.q_rows + kTile - 1) / kTile * args.heads;
  const Range range = range_of(share.index, units, forward_units_per_share(args));
  for (int64_t unit = range.begin; unit < range.end; ++unit) attention_unit(args, unit, share.scratch);
}

#include "kernels/attention_backward.inl.h"
