// Attention. A unit is some packed query rows of the heads that share one key/value head: each chunk of keys is packed once
// for all of them, and a register tile's rows go through scores, softmax and the product with the values while they are in
// L1. What makes a row's bits its own: see args.h, Product and softmax_tile.
#include "kernels/attention_tile.inl.h"
#include "kernels/attention_mask.inl.h"

// Rows are (query row, head) in that order, so that neighbours see the same keys.
struct ForwardScratch {
  float *keys, *values;   // of the chunk: words along, turned (k words, kChunk); words across (kChunk, v_step)
  float *probs, *words;   // of a register tile: (kTallRows, kChunk), and as words along
  float *queries, *out;   // of the unit: (rows, k_step), (rows, v_step)
  float *sums, *max;      // (rows, kWidth): sums of probabilities, lane by lane; (rows)
};

template <class T> static inline ForwardScratch forward_scratch(const AttentionArgs<T>& args, void* memory) {
  const int64_t k_width = padded(args.k_dim), v_width = padded(args.v_dim);
  const int64_t rows = forward_rows(args) * (args.heads / args.kv_heads);
  ForwardScratch s;
  s.keys = (float*)memory;
  s.values = s.keys + kChunk * k_width;
  s.probs = s.values + kChunk * v_width;
  s.words = s.probs + kTallRows * kChunk;
  s.queries = s.words + kTallRows * kChunk;
  s.out = s.queries + rows * k_width;
  s.sums = s.out + rows * v_width;
  s.max = s.sums + rows * kWidth;
  return s;
}

constexpr int kTallPadded = (kTallRows + kWidth - 1) / kWidth * kWidth;
constexpr int kSoftmaxStep = 2 * kWidth;  // two vectors of probabilities become words together
// Where a word is a float one will do, if it covers the steps of spans.
template <class P> constexpr int kTileStep = P::kPer == 1 && kWidth >= kSpanStep ? kWidth : kSoftmaxStep;

// Raw products of a register tile's rows -> words of probabilities relative to the new maximum; factor[r] is what earlier
// sums are to be multiplied by. `rules` are of the rows; spans are their keys in the chunk, all of it for every row if
// `whole`. Leaving out a row that sees nothing here gives the same bits as taking it along: its factor is 1 and it adds zeros.
template <class P>
static inline void softmax_tile(const ScoreRule* const* rules, const float* offsets, int64_t rows, bool whole,
                                const Spans& keys, float* probs, float* words, float* max_so_far, float* sums, float* factor) {
  constexpr int kStep = kTileStep<P>;
  const Vec lowest = set1(-INFINITY);
  alignas(64) float scale[kTallPadded], before[kTallPadded], now[kTallPadded], shift[kTallPadded];
  for (int r = 0; r < kTallPadded; ++r) {
    scale[r] = 1.0f;
    before[r] = now[r] = -INFINITY;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const ScoreRule& rule = *rules[r];
    float* p = probs + r * kChunk;
    const int begin = keys.begin[r], end = keys.end[r];
    Vec top = lowest;
    if (rule.plain && whole) {
#pragma GCC unroll 4
      for (int i = 0; i < kChunk; i += kWidth) top = max(top, load(p + i));
    } else {
      for (int i = begin / kStep * kStep; i < (end + kStep - 1) / kStep * kStep; i += kWidth) {
        Vec s = load(p + i), bend;
        if (!rule.plain) s = mul(score_of(rule, s, add(load(kLanes), set1(offsets[r] + (float)i)), bend), set1(kLog2E));
        s = keep_seen(s, lowest, i, begin, end);
        store(p + i, s);
        top = max(top, s);
      }
    }
    const float here = begin < end ? hmax(top) : -INFINITY;
    scale[r] = rule.plain ? rule.scale * kLog2E : 1.0f;
    before[r] = max_so_far[r];
    max_so_far[r] = now[r] = here > before[r] ? here : before[r];
  }
  for (int64_t r = 0; r < rows; r += kWidth) {
    const Vec by_scale = load(scale + r), top = load(now + r);
    // -inf - -inf would be NaN where nothing but -inf was seen.
    const Vec by = select(eq(top, lowest), zero(), mul(top, by_scale));
    store(factor + r, power_of_two(sub(mul(load(before + r), by_scale), by)));
    store(shift + r, by);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float* p = probs + r * kChunk;
    float* w = words + r * (kChunk / P::kPer);
    const Vec by = set1(-shift[r]), times = set1(scale[r]);
    Vec total = zero();
    if (whole) {
#pragma GCC unroll 2
      for (int i = 0; i < kChunk; i += kSoftmaxStep) {
        const Vec a = power_of_two(fma(load(p + i), times, by)), b = power_of_two(fma(load(p + i + kWidth), times, by));
        total = kStep == kWidth ? add(add(total, a), b) : add(total, add(a, b));
        P::store_along(w, i, a, b);
      }
    } else {
      for (int i = keys.begin[r] / kStep * kStep; i < keys.end[r]; i += kStep) {
        const Vec a = power_of_two(fma(load(p + i), times, by));
        if (kStep == kWidth) {
          total = add(total, a);
          store(w + i, a);
        } else {
          const Vec b = power_of_two(fma(load(p + i + kWidth), times, by));
          total = add(total, add(a, b));
          P::store_along(w, i, a, b);
        }
      }
    }
    store(sums + r * kWidth, fma(load(sums + r * kWidth), set1(factor[r]), total));
  }
}

// The rows of one sequence.
template <class P>
static void attend(const AttentionArgs<typename P::Element>& args, const QueryRows& q, int64_t group, const ForwardScratch& s) {
  using T = typename P::Element;
  const int64_t each = args.heads / args.kv_heads, rows = q.count * each, tiles = parts_of(rows, kTallRows);
  const int64_t k_words = (args.k_dim + P::kPer - 1) / P::kPer, k_step = padded(k_words), v_step = padded(args.v_dim);
  const T* keys = args.k + q.k_start * args.k_stride + group * args.k_dim;
  const T* values = args.v + q.k_start * args.v_stride + group * args.v_dim;
  float* words = P::kPer == 1 ? s.probs : s.words;
  for (int64_t r = 0; r < q.count; ++r)
    pack_along<P>(args.q + (q.row + r) * args.q_stride + group * each * args.k_dim, args.k_dim, each, args.k_dim,
                  s.queries + r * each * k_step, k_step);
  clear(s.out, rows * v_step);
  clear(s.sums, rows * kWidth);
  for (int64_t r = 0; r < rows; ++r) s.max[r] = -INFINITY;

  const ScoreRule shared = score_rule(args, group * each);
  const Stretch seen = chunks_seen(args, q);
  for (int64_t chunk = seen.begin; chunk < seen.end; chunk += kChunk) {
    const int64_t count = clamped(seen.end - chunk, 0, kChunk);
    const bool all = all_seen(args, q, chunk, count);
    const int64_t next = chunk + kChunk < seen.end ? kChunk : 0;
    pack_turned<P>(keys + chunk * args.k_stride, args.k_stride, count, args.k_dim, s.keys, next * args.k_stride);
    const bool finite = P::pack_across(values + chunk * args.v_stride, args.v_stride, count, args.v_dim, s.values,
                                       v_step, next * args.v_stride);
    Spans spans;
    if (all) same_spans(kTallRows, (int)count, spans);
    for (int64_t i = 0; i < tiles; ++i) {
      const auto [low, high] = part_of(rows, tiles, i);
      if (!all) keys_of_rows(args, q, each, low, high, chunk, spans);
      chunk_products<P>(s.queries + low * k_step, k_step, k_words, s.keys, high - low, spans.begin, spans.end, s.probs);
      alignas(64) float factor[kTallPadded], offsets[kTallPadded];
      ScoreRule own[kTallRows];
      const ScoreRule* rules[kTallRows];
      for (int64_t r = 0; r < high - low; ++r) {
        rules[r] = &shared;
        if (!shared.biased) continue;
        own[r] = score_rule(args, group * each + (low + r) % each);
        rules[r] = own + r;
        offsets[r] = (float)(chunk - (q.position + (low + r) / each));
      }
      softmax_tile<P>(rules, offsets, high - low, all && count == kChunk, spans, s.probs, words, s.max + low,
                      s.sums + low * kWidth, factor);
      const Product<P, false> output = {words, kChunk / P::kPer, s.values, v_step, v_step, s.out + low * v_step, v_step};
      output.run(high - low, spans.begin, spans.end, finite, factor);
    }
  }
  int64_t row = q.row, head = group * each;
  const Vec unit = set1(shared.plain ? shared.scale * kLog2E : 1.0f);
  for (int64_t r = 0; r < rows; r += kWidth) {
    alignas(64) float inverse[kWidth], lse[kWidth];
    const int64_t count = at_most(rows - r, kWidth);
    const Vec total = lane_sums(s.sums + r * kWidth, count);
    const Mask empty = eq(total, zero());
    store(inverse, select(empty, zero(), div(set1(1.0f), total)));
    const Vec top = mul(load_n(s.max + r, count), unit);
    store(lse, select(empty, set1(-INFINITY), fma(top, set1(kLn2), log(total))));
    for (int64_t i = 0; i < count; ++i) {
      write_rows(s.out + (r + i) * v_step, v_step, 1, args.v_dim, inverse + i, 0,
                 args.o + row * args.o_stride + head * args.v_dim, args.o_stride, false);
      if (args.lse) args.lse[head * args.q_rows + row] = lse[i];
      if (++head == (group + 1) * each) {
        head = group * each;
        ++row;
      }
    }
  }
}

template <class P>
static void attention_unit(const AttentionArgs<typename P::Element>& args, int64_t unit, const ForwardScratch& scratch) {
  const int64_t blocks = forward_blocks(args), rows = forward_rows(args);
  // Long sequences: the blocks of a head follow each other, the last (under a causal mask the longest) first. Short ones:
  // the heads of a block, which lie side by side in memory.
  const bool is_long = args.q_rows > args.seqs * rows;
  const int64_t group = is_long ? unit / blocks : unit % args.kv_heads;
  const int64_t block = is_long ? blocks - 1 - unit % blocks : unit / args.kv_heads;
  const int64_t begin = block * rows, end = at_most(begin + rows, args.q_rows);
  int64_t seq = 0;
  for (int64_t above = args.seqs; seq < above;) {  // the first sequence that ends after `begin`
    const int64_t middle = (seq + above) / 2;
    if (args.q_start[middle + 1] > begin) above = middle;
    else seq = middle + 1;
  }
  for (; seq < args.seqs && args.q_start[seq] < end; ++seq) {
    const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
    const int64_t from = at_least(first, begin), to = at_most(last, end);
    if (from >= to) continue;
    const int64_t k_len = args.k_len[seq];
    attend<P>(args, {from, to - from, k_len - last + from, args.k_start[seq], k_len}, group, scratch);
  }
}

template <class P> static void attention_of(const AttentionArgs<typename P::Element>& args, const Share& share) {
  const ForwardScratch scratch = forward_scratch(args, share.scratch);
  const Range range = range_of(share.index, forward_blocks(args) * args.kv_heads, forward_units_per_share(args));
  for (int64_t unit = range.begin; unit < range.end; ++unit) attention_unit<P>(args, unit, scratch);
}

#include "kernels/attention_backward.inl.h"
