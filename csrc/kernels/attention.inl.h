// Attention. A unit is some packed query rows of the heads that share one key/value head: each chunk of keys is packed once
// for all of them, and a register tile's rows go through scores, softmax and the product with the values while they are in
// L1. What makes a row's bits its own: see args.h, Product, softmax_tile and merge_row.
#include "kernels/attention_tile.inl.h"
#include "kernels/attention_mask.inl.h"

// What rows have of some keys: (rows, v_step) not yet divided by the sums of probabilities, which are kept lane by lane in
// (rows, kWidth); (rows).
struct RowSums {
  float *out, *sums, *max;
  inline RowSums at(int64_t row, int64_t v_step) const { return {out + row * v_step, sums + row * kWidth, max + row}; }
};
static inline RowSums take_sums(float*& memory, int64_t rows, int64_t v_step) {
  const RowSums s = {memory, memory + rows * v_step, memory + rows * (v_step + kWidth)};
  memory = s.max + padded(rows);
  return s;
}
static inline void clear(const RowSums& s, int64_t rows, int64_t v_step) {
  clear(s.out, rows * v_step);
  clear(s.sums, rows * kWidth);
  for (int64_t r = 0; r < rows; ++r) s.max[r] = -INFINITY;
}

// Rows are (query row, head) in that order, so that neighbours see the same keys.
struct ForwardScratch {
  float *keys, *values;   // of the chunk: words along, turned (k words, kChunk); words across (kChunk, v_step)
  float *probs, *words;   // of a register tile: (kTallPadded, kChunk), and as words along
  float* queries;         // of the unit: (rows, k_step), and room for a tile's rows that are not there
  RowSums stretch, total; // of the stretch of keys, and of those before
};

template <class T> static inline ForwardScratch forward_scratch(const AttentionArgs<T>& args, void* memory) {
  const int64_t k_width = padded(args.k_dim), v_width = padded(args.v_dim);
  const int64_t rows = forward_rows(args) * (args.heads / args.kv_heads);
  ForwardScratch s;
  s.keys = (float*)memory;
  s.values = s.keys + kChunk * k_width;
  s.probs = s.values + kChunk * v_width;
  s.words = s.probs + kTallPadded * kChunk;
  s.queries = s.words + kTallPadded * kChunk;
  float* next = s.queries + (rows + kWidth) * k_width;
  s.stretch = take_sums(next, rows, v_width);
  s.total = take_sums(next, rows, v_width);
  return s;
}

// The words of products of P that keys and values stored as S make (attention_pairs.inl.h has those of pairs).
template <class P, class S> struct StoredAs {
  using Words = AttentionWords<S>;
};
template <class S> constexpr bool kScaled = false;
template <> constexpr bool kScaled<int8_t> = true;
template <class S, class T> static inline const S* stored(const T* numbers, int64_t at) { return (const S*)numbers + at; }

// Scales of a chunk's keys or values for rows of which `each` share a key/value head, the heads `step` apart.
struct ChunkScales {
  const float* at;
  int64_t step, each;
  inline const float* of(int64_t row) const { return at + row / each * step; }
};
template <class S, class T>
static inline ChunkScales chunk_scales(const AttentionArgs<T>& args, const float* scales, int64_t head, int64_t key, int64_t each) {
  if constexpr (!kScaled<S>) return {};
  const int64_t step = args.k_rows + kKeyChunk;
  return {scales + head * step + key, step, each};
}
// Raw products with codes -> with keys.
static inline void scale_products(const ChunkScales& scales, int64_t first, int64_t rows, float* probs) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* by = scales.of(first + r);
    for (int i = 0; i < kChunk; i += kWidth) store(probs + r * kChunk + i, mul(load(probs + r * kChunk + i), load(by + i)));
  }
}
// What is not seen has probability zero, and a scale that may be anything.
template <bool kTimes> static inline Vec times_scale(Vec p, const float* by, int at) {
  if constexpr (kTimes) return select(eq(p, zero()), zero(), mul(p, load(by + at)));
  else return p;
}

constexpr int kSoftmaxStep = 2 * kWidth;  // two vectors of probabilities become words together
// Where a word is a float one will do, if it covers the steps of spans.
template <class P> constexpr int kTileStep = P::kPer == 1 && kWidth >= kSpanStep ? kWidth : kSoftmaxStep;

// 2^x of a probability; where it becomes bf16 at once, to no more than that.
template <class P> MG_INLINE Vec probability(Vec x) {
  if constexpr (kTiles<P>) return coarse_power_of_two(x);
  else return power_of_two(x);
}

// Raw products of a register tile's rows, `scale` times which are scores but for ln 2 -> words of probabilities relative to the new
// maximum; factor[r] is what earlier sums are to be multiplied by. Rows' maxima are found side by side, and so is what follows from
// them. kWhole: every row sees all of the chunk; else `keys` are what it sees. With scales of the values (row `first` of theirs is
// row 0 here), words are probabilities times these.
template <class P, bool kWhole>
static inline void softmax_rows(float scale, int64_t rows, const Spans& keys, const float* probs, float* words, float* max_so_far,
                                float* sums, float* factor, const ChunkScales& values, int64_t first) {
  constexpr bool kTimes = kScaled<typename P::Element>;
  constexpr int kStep = kTileStep<P>;
  const Vec lowest = set1(-INFINITY), times = set1(scale);
  const auto seen_of = [&](Vec x, Vec other, int i, int64_t r) {
    return kWhole ? x : keep_seen(x, other, i, keys.begin[r], keys.end[r]);
  };
  alignas(64) float tops[kTallPadded * kWidth], shift[kTallPadded];
  for (int64_t r = 0; r < rows; ++r) {
    const float* p = probs + r * kChunk;
    Vec top = lowest;
#pragma GCC unroll 4
    for (int i = kWhole ? 0 : keys.begin[r] / kWidth * kWidth; i < (kWhole ? kChunk : keys.end[r]); i += kWidth)
      top = max(top, seen_of(load(p + i), lowest, i, r));
    store(tops + r * kWidth, top);
  }
  for (int64_t r = rows; r < padded(rows); ++r) store(tops + r * kWidth, lowest);
  for (int64_t r = 0; r < rows; r += kWidth) {
    const int64_t count = at_most(rows - r, kWidth);
    const Vec before = load_n(max_so_far + r, count), here = largest_lanes(tops + r * kWidth);
    const Vec now = select(lt(before, here), here, before);
    store_n(max_so_far + r, now, count);
    // -inf - -inf would be NaN where nothing but -inf was seen.
    const Vec by = select(eq(now, lowest), zero(), mul(now, times));
    store(factor + r, power_of_two(sub(mul(before, times), by)));
    store(shift + r, sub(zero(), by));
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float* p = probs + r * kChunk;
    float* w = words + r * (kChunk / P::kPer);
    const float* of = kTimes ? values.of(first + r) : nullptr;
    const Vec less = set1(shift[r]);
    const auto probability_at = [&](int i) { return seen_of(probability<P>(fma(load(p + i), times, less)), zero(), i, r); };
    Vec total = zero();
#pragma GCC unroll 4
    for (int i = kWhole ? 0 : keys.begin[r] / kStep * kStep; i < (kWhole ? kChunk : keys.end[r]); i += kStep) {
      const Vec a = probability_at(i);
      if constexpr (kStep == kWidth) {
        total = add(total, a);
        store(w + i, times_scale<kTimes>(a, of, i));
      } else {
        const Vec b = probability_at(i + kWidth);
        total = add(total, add(a, b));
        P::store_along(w, i, times_scale<kTimes>(a, of, i), times_scale<kTimes>(b, of, i + kWidth));
      }
    }
    store(sums + r * kWidth, fma(load(sums + r * kWidth), set1(factor[r]), total));
  }
}

// The same of rows whose scores are as `rules` say, `offsets` the keys' positions less theirs. `keys` are what each sees of the
// chunk, all of it if `whole`. Leaving out a row that sees nothing here gives the same bits as taking it along: its factor is 1 and
// it adds zeros.
template <class P>
static inline void softmax_tile(const ScoreRule* const* rules, const float* offsets, int64_t rows, bool whole, const Spans& keys,
                                float* probs, float* words, float* max_so_far, float* sums, float* factor,
                                const ChunkScales& values, int64_t first) {
  const bool plain = rules[0]->plain;
  for (int64_t r = 0; r < rows && !plain; ++r)
    for (int i = keys.begin[r] / kWidth * kWidth; i < keys.end[r]; i += kWidth) {
      float* p = probs + r * kChunk + i;
      Vec bend;
      store(p, mul(score_of(*rules[r], load(p), add(load(kLanes), set1(offsets[r] + (float)i)), bend), set1(kLog2E)));
    }
  const float scale = plain ? rules[0]->scale * kLog2E : 1.0f;
  if (whole) softmax_rows<P, true>(scale, rows, keys, probs, words, max_so_far, sums, factor, values, first);
  else softmax_rows<P, false>(scale, rows, keys, probs, words, max_so_far, sums, factor, values, first);
}

// Rules and offsets of rows of a tile: row r is of head `head` + (first + r) % each, and stands `each` rows to a position.
struct RowRules {
  ScoreRule own[kTallPadded];
  const ScoreRule* of[kTallPadded];
  float offsets[kTallPadded];

  template <class T>
  inline void set(const AttentionArgs<T>& args, const ScoreRule& shared, int64_t head, int64_t each, int64_t first,
                  int64_t rows, int64_t chunk, int64_t position) {
    for (int64_t r = 0; r < rows; ++r) {
      of[r] = &shared;
      if (!shared.biased) continue;
      own[r] = score_rule(args, head + (first + r) % each);
      of[r] = own + r;
      offsets[r] = (float)(chunk - (position + (first + r) / each));
    }
  }
};

// What a unit of the exponent is in a largest score.
static inline float exponent_unit(const ScoreRule& rule) { return rule.plain ? rule.scale * kLog2E : 1.0f; }

// Sums over keys, and those over keys after them -> over both.
static inline void merge_row(const RowSums& total, const RowSums& next, int64_t v_step, float unit) {
  const float before = *total.max, top = *next.max > before ? *next.max : before;
  const Vec by = set1(top == -INFINITY ? 0.0f : top * unit);
  const Vec of_total = power_of_two(sub(mul(set1(before), set1(unit)), by));
  const Vec of_next = power_of_two(sub(mul(set1(*next.max), set1(unit)), by));
  *total.max = top;
  store(total.sums, fma(load(total.sums), of_total, mul(load(next.sums), of_next)));
  for (int64_t i = 0; i < v_step; i += kWidth)
    store(total.out + i, fma(load(total.out + i), of_total, mul(load(next.out + i), of_next)));
}

// The same for rows of which each sees what it sees of the stretch that begins at key `from`. A row's first one is taken over.
template <class T>
static inline void merge_stretch(const AttentionArgs<T>& args, const QueryRows& q, int64_t each, int64_t from,
                                 const RowSums& total, const RowSums& next, int64_t v_step, float unit) {
  for (int64_t r = 0; r < q.count * each; ++r) {
    const Stretch seen = keys_seen(args, q.position + r / each, q.k_len);
    if (seen.begin >= seen.end || seen.end <= from || seen.begin >= from + kKeyStretch) continue;
    const RowSums a = total.at(r, v_step), b = next.at(r, v_step);
    if (seen.begin < from) {
      merge_row(a, b, v_step, unit);
      continue;
    }
    memcpy(a.out, b.out, (size_t)v_step * sizeof(float));
    store(a.sums, load(b.sums));
    *a.max = *b.max;
  }
}

// Writes out and lse of rows of which `heads` are of one query row, from `head` on.
template <class T>
static inline void finish_rows(const AttentionArgs<T>& args, int64_t query_row, int64_t head, int64_t heads, int64_t rows,
                               const RowSums& s, int64_t v_step, float exponent) {
  int64_t row = query_row, at = head;
  const Vec unit = set1(exponent);
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
                 args.o + row * args.o_stride + at * args.v_dim, args.o_stride, false);
      if (args.lse) args.lse[at * args.q_rows + row] = lse[i];
      if (++at == head + heads) {
        at = head;
        ++row;
      }
    }
  }
}

// The rows of one sequence. W: the words of what keys and values are stored as. `after`: what is read next.
template <class P, class W>
static void attend(const AttentionArgs<typename P::Element>& args, const QueryRows& q, int64_t group, const NextUnit& after,
                   const ForwardScratch& s) {
  using S = typename W::Element;
  const int64_t each = args.heads / args.kv_heads, rows = q.count * each;
  const int64_t k_words = (args.k_dim + P::kPer - 1) / P::kPer, k_step = padded(k_words), v_step = padded(args.v_dim);
  const S* keys = stored<S>(args.k, q.k_start * args.k_stride + group * args.k_dim);
  const S* values = stored<S>(args.v, q.k_start * args.v_stride + group * args.v_dim);
  float* words = P::kPer == 1 ? s.probs : s.words;
  for (int64_t r = 0; r < q.count; ++r) {
    const auto* row = args.q + (q.row + r) * args.q_stride + group * each * args.k_dim;
    pack_along<P>(row, args.k_dim, each, args.k_dim, s.queries + r * each * k_step, k_step);
    if (after.q) ask_for(row + after.q, each * args.k_dim);
  }
  ask_to_write_rows(args.o + q.row * args.o_stride + group * each * args.v_dim, args.o_stride, q.count, each * args.v_dim);
  clear(s.stretch, rows, v_step);

  const ScoreRule shared = score_rule(args, group * each);
  const float unit = exponent_unit(shared);
  const Stretch seen = chunks_seen(args, q);
  bool merged = false;
  for (int64_t chunk = seen.begin; chunk < seen.end; chunk += kChunk) {
    if (chunk % kKeyStretch == 0 && chunk > seen.begin) {
      if (!merged) clear(s.total, rows, v_step);
      merge_stretch(args, q, each, chunk - kKeyStretch, s.total, s.stretch, v_step, unit);
      clear(s.stretch, rows, v_step);
      merged = true;
    }
    const int64_t count = clamped(seen.end - chunk, 0, kChunk);
    const bool more = chunk + kChunk < seen.end;
    pack_turned<W>(keys + chunk * args.k_stride, args.k_stride, count, args.k_dim, s.keys,
                   ahead_of_chunk(chunk, more, args.k_stride, after.k));
    const bool finite = W::pack_across(values + chunk * args.v_stride, args.v_stride, count, args.v_dim, s.values,
                                       v_step, ahead_of_chunk(chunk, more, args.v_stride, after.v));
    if constexpr (kTiles<P>) clear_unpacked(s.values, count, v_step);
    const auto rows_together = [&](int64_t begin, int64_t end, bool whole) {
      if (begin >= end) return;
      Spans spans;
      if (whole) same_spans(kTallPadded, (int)count, spans);
      const int64_t most = whole || kTiles<P> ? kScoreRows<P> : kMaskedRows, tiles = parts_of(end - begin, most);
      for (int64_t i = 0; i < tiles; ++i) {
        const RowPart part = part_of(end - begin, tiles, i);
        const int64_t low = begin + part.low, high = begin + part.high;
        if (!whole) keys_of_rows(args, q, each, low, high, chunk, spans);
        chunk_products<P>(s.queries + low * k_step, k_step, k_words, s.keys, high - low, spans.begin, spans.end, s.probs);
        const ChunkScales of_keys = chunk_scales<S>(args, args.k_scales, group, q.k_start + chunk, rows);
        if constexpr (kScaled<S>) scale_products(of_keys, low, high - low, s.probs);
        alignas(64) float factor[kTallPadded];
        RowRules rules;
        rules.set(args, shared, group * each, each, low, high - low, chunk, q.position);
        const RowSums sums = s.stretch.at(low, v_step);
        softmax_tile<W>(rules.of, rules.offsets, high - low, whole && count == kChunk, spans, s.probs, words, sums.max, sums.sums,
                        factor, chunk_scales<S>(args, args.v_scales, group, q.k_start + chunk, rows), low);
        const Product<P, false> output = {words, kChunk / P::kPer, s.values, v_step, v_step, sums.out, v_step};
        output.run(high - low, most, spans.begin, spans.end, finite, factor);
      }
    };
    const RowsSeeing see = rows_seeing(args, q, chunk, count);
    rows_together(see.first * each, see.whole * each, false);
    rows_together(see.whole * each, see.partly * each, true);
    rows_together(see.partly * each, see.behind * each, false);
  }
  if (merged) merge_stretch(args, q, each, (seen.end - 1) / kKeyStretch * kKeyStretch, s.total, s.stretch, v_step, unit);
  finish_rows(args, q.row, group * each, each, rows, merged ? s.total : s.stretch, v_step, unit);
}

// The sequence that packed row `row` belongs to, the first that ends after it.
template <class T> static inline int64_t sequence_of(const AttentionArgs<T>& args, int64_t row) {
  int64_t seq = 0;
  for (int64_t above = args.seqs; seq < above;) {
    const int64_t middle = (seq + above) / 2;
    if (args.q_start[middle + 1] > row) above = middle;
    else seq = middle + 1;
  }
  return seq;
}
// `count` rows from packed row `row` on, of sequence `seq`.
template <class T>
static inline QueryRows rows_of(const AttentionArgs<T>& args, int64_t seq, int64_t row, int64_t count) {
  const int64_t k_len = args.k_len[seq];
  return {row, count, k_len - args.q_start[seq + 1] + row, args.k_start[seq], k_len};
}

#include "kernels/attention_narrow.inl.h"

// Units from `unit` on that lie side by side, at most up to `end`; gives how many.
template <class P, class W>
static int64_t attend_units(const AttentionArgs<typename P::Element>& args, int64_t unit, int64_t end,
                            const ForwardScratch& scratch) {
  const int64_t blocks = forward_blocks(args), rows = forward_rows(args);
  // Long sequences: the blocks of a head follow each other, the last (under a causal mask the longest) first. Short ones:
  // the heads of a block, which lie side by side in memory.
  const bool is_long = args.q_rows > args.seqs * rows;
  const int64_t group = is_long ? unit / blocks : unit % args.kv_heads;
  const int64_t block = is_long ? blocks - 1 - unit % blocks : unit / args.kv_heads;
  const int64_t groups = is_long ? 1 : at_most(args.kv_heads - group, end - unit);
  const NextUnit before = {block > 0 ? -rows * args.q_stride : 0, 0, 0, 0};  // of a long sequence
  const int64_t first = block * rows, behind = at_most(first + rows, args.q_rows);
  for (int64_t seq = sequence_of(args, first); seq < args.seqs && args.q_start[seq] < behind; ++seq) {
    const int64_t from = at_least(args.q_start[seq], first), to = at_most(args.q_start[seq + 1], behind);
    if (from >= to) continue;
    const QueryRows q = rows_of(args, seq, from, to - from);
    if (args.kv == KvType::same && attend_narrow<P>(args, q, group, groups)) continue;
    for (int64_t g = group; g < group + groups; ++g)
      attend<P, W>(args, q, g, is_long ? before : next_unit(args, seq, g), scratch);
  }
  return groups;
}

#include "kernels/attention_decode.inl.h"

template <class P, class W> static void attention_over(const AttentionArgs<typename P::Element>& args, const Share& share) {
  if (is_decode(args)) {
    decode_of<P, W>(args, share);
    return;
  }
  const ForwardScratch scratch = forward_scratch(args, share.scratch);
  if constexpr (kTiles<P>) clear_words<P>(scratch.keys, args.k_dim);
  const Range range = range_of(share.index, forward_blocks(args) * args.kv_heads, forward_units_per_share(args));
  for (int64_t unit = range.begin; unit < range.end;) unit += attend_units<P, W>(args, unit, range.end, scratch);
}
template <class P> static void attention_of(const AttentionArgs<typename P::Element>& args, const Share& share) {
  switch (args.kv) {
    case KvType::same: return attention_over<P, P>(args, share);
    case KvType::f32: return attention_over<P, typename StoredAs<P, float>::Words>(args, share);
    case KvType::bf16: return attention_over<P, typename StoredAs<P, bf16>::Words>(args, share);
    case KvType::int8: return attention_over<P, typename StoredAs<P, int8_t>::Words>(args, share);
  }
}

#include "kernels/attention_backward.inl.h"
