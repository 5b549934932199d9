// Decode: one query row against many keys. What takes long is reading them, and memory is read fastest as it lies. So the
// heads of a unit go side by side through blocks of kDecodeBlock tokens, and the tokens after these are asked for meanwhile.
// Keys are turned in registers (on tiles not even these), values read in place; nothing is packed. The chains are those of
// attend().

constexpr int64_t kDecodeBlock = 16;  // tokens; a multiple of every vector, divides kChunk
// Rows that share a turned block of keys: AVX-512 16 of keys + 8 sums of 32 registers; AVX2 8 + 4 of 16.
constexpr int kDecodeRows = kWidth == 16 ? 8 : 4;

// The most rows of a head that are computed together.
template <class T> static inline int64_t decode_rows(const AttentionArgs<T>& args) {
  return at_most(args.heads / args.kv_heads, kDecodeRows);
}

// Whether W reads in place here: up to so many queries of a key head, and whole steps of a head.
constexpr int64_t kInPlaceQueries = 4, kInPlaceStep = 32;
template <class W, class T> static inline bool decode_in_place(const AttentionArgs<T>& args) {
  return kInPlace<W> && args.heads <= kInPlaceQueries * args.kv_heads && args.k_dim % kInPlaceStep == 0 && args.v_dim % kInPlaceStep == 0;
}

struct DecodeScratch {
  float* queries;         // (rows, k_step)
  float* across;          // in place: (key heads, k_step, queries of one); of one query the same
  float *probs, *words;   // (rows, kChunk), and as words along
  float* factor;          // (rows)
  RowSums stretch, total;
  float* sums;            // of tiles: (rows, v_step) of a chunk, and room for rows that are not there
};
template <class T> static inline DecodeScratch decode_scratch(const AttentionArgs<T>& args, void* memory) {
  const int64_t groups = decode_groups(args), v_width = padded(args.v_dim);
  const int64_t rows = (args.kv_heads + groups - 1) / groups * (args.heads / args.kv_heads), vectors = padded(rows);
  DecodeScratch s;
  s.probs = (float*)memory;
  s.words = s.probs + vectors * kChunk;
  s.factor = s.words + vectors * kChunk;
  s.queries = s.factor + vectors;
  s.across = s.queries;
  if (args.heads > args.kv_heads) s.across += (rows + kWidth) * padded(args.k_dim) / 2;  // words in place are pairs
  float* next = s.queries + (rows + kWidth) * padded(args.k_dim);
  s.stretch = take_sums(next, rows, v_width);
  s.total = take_sums(next, rows, v_width);
  s.sums = next;
  return s;
}

template <class T> struct DecodeBlock {
  const T* tokens;  // keys or values, of one head
  int64_t stride;
  int64_t count;    // tokens that there are
  int64_t width;
  const float* x;   // words of the rows: queries (in place: across), or probabilities of the block
  int64_t x_step;
  float* out;
  int64_t out_step;
  const T* ahead;   // what is read after these tokens, to be fetched meanwhile
  int64_t ahead_stride;
};

// Raw products of R rows with kWidth keys. kWhole: there are as many, and whole vectors of their words.
template <class P, int R, bool kWhole> static void decode_scores(const DecodeBlock<typename P::Element>& b) {
  constexpr int64_t kPart = kWidth * P::kPer;
  Vec sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = zero();
  for (int64_t i = 0; i < b.width; i += kPart) {
    const int64_t words = kWhole ? kWidth : at_most((b.width - i + P::kPer - 1) / P::kPer, kWidth);
    const typename P::Element* from = b.tokens + i;
    Vec block[kWidth];
#pragma GCC unroll 16
    for (int c = 0; c < kWidth; ++c) {
      if (kWhole) block[c] = P::along(from + c * b.stride);
      else block[c] = c < b.count ? P::along_n(from + c * b.stride, at_most(b.width - i, kPart)) : zero();
    }
#pragma GCC unroll 16
    for (int c = 0; c < kWidth; ++c) __builtin_prefetch(b.ahead + i + c * b.ahead_stride, 0, 2);
    gemm_transpose(block);
    const float* x = b.x + i / P::kPer;
#pragma GCC unroll 16
    for (int w = 0; w < kWidth; ++w) {
      if (!kWhole && w >= words) break;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r] = P::Step::step(set1(x[r * b.x_step + w]), block[w], sum[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store(b.out + r * b.out_step, sum[r]);
}

// out = factor * out + probabilities x values, for tokens [from, to) of the block; [begin, end) of them are seen. kWhole:
// that is all kDecodeBlock.
template <class P, int R, bool kWhole>
static void decode_values(const DecodeBlock<typename P::Element>& b, int from, int to, int begin, int end, const float* factor) {
  for (int64_t j = 0; j < b.width; j += 2 * kWidth) {
    const int64_t n = b.width - j;
    const bool two = n > kWidth;
    Vec sum[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec by = set1(factor[r]);
      sum[r][0] = mul(load(b.out + r * b.out_step + j), by);
      sum[r][1] = two ? mul(load(b.out + r * b.out_step + j + kWidth), by) : zero();
    }
    const auto step = [&](int i) {
      const typename P::Element* row = b.tokens + i * b.stride + j;
      Vec value[2];
      if (kWhole || i < b.count) P::across_two(row, b.stride, kWhole || i + 1 < b.count, n, value[0], value[1]);
      else value[0] = value[1] = zero();
      for (int k = 0; k < P::kPer; ++k) __builtin_prefetch(b.ahead + j + (i + k) * b.ahead_stride, 0, 2);
      if (!kWhole) {
        const int last = i + P::kPer - 1;
        for (Vec& v : value) v = P::seen(v, i >= begin && i < end, last >= begin && last < end);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec x = set1(b.x[r * b.x_step + i / P::kPer]);
        sum[r][0] = P::Step::step(x, value[0], sum[r][0]);
        sum[r][1] = P::Step::step(x, value[1], sum[r][1]);
      }
    };
    if (kWhole) {
#pragma GCC unroll 4
      for (int i = 0; i < kDecodeBlock; i += P::kPer) step(i);
    } else {
      for (int i = from; i < to; i += P::kPer) step(i);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      store(b.out + r * b.out_step + j, sum[r][0]);
      if (two) store(b.out + r * b.out_step + j + kWidth, sum[r][1]);
    }
  }
}

template <class P> using DecodeScoresFn = void (*)(const DecodeBlock<typename P::Element>&);
template <class P> using DecodeValuesFn = void (*)(const DecodeBlock<typename P::Element>&, int, int, int, int, const float*);
#define MG_ROWS(f, r) &f<P, (r < kDecodeRows ? r : kDecodeRows), kWhole>
#define MG_TABLE(f) \
  {MG_ROWS(f, 1), MG_ROWS(f, 2), MG_ROWS(f, 3), MG_ROWS(f, 4), MG_ROWS(f, 5), MG_ROWS(f, 6), MG_ROWS(f, 7), MG_ROWS(f, 8)}
template <class P, bool kWhole> static inline DecodeScoresFn<P> decode_scores_of(int64_t rows) {
  static constexpr DecodeScoresFn<P> table[8] = MG_TABLE(decode_scores);
  return table[rows - 1];
}
template <class P, bool kWhole> static inline DecodeValuesFn<P> decode_values_of(int64_t rows) {
  static constexpr DecodeValuesFn<P> table[8] = MG_TABLE(decode_values);
  return table[rows - 1];
}
#undef MG_TABLE
#undef MG_ROWS

// A query row, and key heads [low, high) of it. `next`: where the keys of the unit after it are; -1: there is none, or not far.
struct DecodeUnit {
  QueryRows q;
  int64_t low, high;
  int64_t next;
};

// Keys [chunk, chunk + kChunk), as far as `seen`.
template <class P, class W>
static void decode_chunk(const AttentionArgs<typename P::Element>& args, const DecodeUnit& unit, const Stretch& seen,
                         int64_t chunk, const ScoreRule& shared, const DecodeScratch& s) {
  using S = typename W::Element;
  constexpr int64_t kPart = kWidth * P::kPer;
  const int64_t each = args.heads / args.kv_heads, rows = (unit.high - unit.low) * each;
  const int64_t k_step = padded((args.k_dim + P::kPer - 1) / P::kPer), v_step = padded(args.v_dim);
  const int begin = (int)clamped(seen.begin - chunk, 0, kChunk), end = (int)clamped(seen.end - chunk, 0, kChunk);
  const int64_t count = at_most(unit.q.k_len - chunk, kChunk);
  float* words = P::kPer == 1 ? s.probs : s.words;
  DecodeBlock<S> b;
  b.stride = args.k_stride, b.width = args.k_dim, b.x_step = k_step, b.out_step = kChunk;
  const int64_t key = unit.q.k_start + chunk, first = begin / kDecodeBlock * kDecodeBlock;
  // What is read next is asked for as many tokens ahead as are taken at once: tiles take values of 32.
  constexpr int64_t kAhead = kTiles<W> ? 2 * kDecodeBlock : kDecodeBlock;
  const bool in_place = decode_in_place<W>(args);
  const int64_t stop = (end + kDecodeBlock - 1) / kDecodeBlock * kDecodeBlock;
  for (int64_t block = first; block < end; block += kDecodeBlock)
    for (int64_t g = unit.low; g < unit.high; ++g)
      for (int64_t k = block; k < block + kDecodeBlock && k < count; k += kWidth) {
        const int64_t over = block + kAhead - stop;  // tokens of the values
        b.tokens = stored<S>(args.k, (key + k) * args.k_stride + g * args.k_dim);
        b.ahead_stride = over < 0 ? args.k_stride : args.v_stride;
        b.ahead = over < 0 ? b.tokens + kAhead * args.k_stride
                           : stored<S>(args.v, (key + first + over + k - block) * args.v_stride + g * args.v_dim);
        b.count = at_most(count - k, kWidth);
        const bool whole = b.count == kWidth && args.k_dim % kPart == 0;
        if constexpr (kInPlace<W>) {
          if (in_place && whole) {
            const int64_t row = (g - unit.low) * each;
            b.x = s.across + row * k_step;
            b.out = s.probs + row * kChunk + k;
            W::scores_in_place(b, each);
            continue;
          }
        }
        for (int64_t r = 0; r < each; r += kDecodeRows) {
          const int64_t row = (g - unit.low) * each + r, n = at_most(each - r, kDecodeRows);
          b.x = s.queries + row * k_step;
          b.out = s.probs + row * kChunk + k;
          if constexpr (kTiles<W>) W::scores(b, n);
          else (whole ? decode_scores_of<W, true>(n) : decode_scores_of<W, false>(n))(b);
        }
      }
  const ChunkScales of_keys = chunk_scales<S>(args, args.k_scales, unit.low, key, each);
  const ChunkScales of_values = chunk_scales<S>(args, args.v_scales, unit.low, key, each);
  if constexpr (kScaled<S>) scale_products(of_keys, 0, rows, s.probs);
  Spans spans;
  for (int r = 0; r < kTallPadded; ++r) spans.begin[r] = begin, spans.end[r] = end;
  for (int64_t r = 0; r < rows; r += kTallPadded) {
    const int64_t n = at_most(rows - r, kTallPadded);
    RowRules rules;
    rules.set(args, shared, unit.low * each, rows, r, n, chunk, unit.q.position);
    softmax_tile<W>(rules.of, rules.offsets, n, begin == 0 && end == kChunk, spans, s.probs + r * kChunk,
                    words + r * (kChunk / P::kPer), s.stretch.max + r, s.stretch.sums + r * kWidth, s.factor + r, of_values, r);
  }
  const int from = begin / kSpanStep * kSpanStep, to = (end + kSpanStep - 1) / kSpanStep * kSpanStep;
  b.stride = args.v_stride, b.width = args.v_dim, b.x_step = kChunk / P::kPer, b.out_step = v_step;
  if constexpr (kTiles<W>) {
    constexpr int64_t kBlock = 2 * kWidth;  // tokens of a step
    const int64_t next = chunk + kChunk < seen.end ? (key + kChunk) * args.k_stride + unit.low * args.k_dim : unit.next;
    const auto each_head = [&](const auto& body) {  // of each block of tokens
      for (int64_t block = begin / kBlock * kBlock; block < end; block += kBlock) {
        const bool more = block + kBlock < end;
        b.count = count - block, b.ahead_stride = more ? args.v_stride : args.k_stride;
        for (int64_t g = unit.low; g < unit.high; ++g) {
          b.tokens = stored<S>(args.v, (key + block) * args.v_stride + g * args.v_dim);
          b.ahead = more ? b.tokens + kBlock * args.v_stride : next < 0 ? b.tokens : stored<S>(args.k, next + (g - unit.low) * args.k_dim);
          body(block, (g - unit.low) * each);
        }
      }
    };
    const auto rows_from = [&](int64_t block, int64_t row) {
      b.x = words + (row * kChunk + block) / P::kPer;
      b.out = s.sums + row * v_step;
    };
    bool done = in_place && begin == 0 && end == kChunk;
    if constexpr (kInPlace<W>) {
      if (done)
        each_head([&](int64_t block, int64_t row) {
          rows_from(block, row);
          done &= W::values_in_place(b, each, block > 0);
        });
    }
    if (!done)
      each_head([&](int64_t block, int64_t first) {
        for (int64_t r = 0; r < each; r += kDecodeRows) {
          rows_from(block, first + r);
          W::values(b, at_most(each - r, kDecodeRows), in_place ? 2 * each : decode_rows(args), (int)at_least(begin - block, 0),
                    (int)(end - block), block > begin / kBlock * kBlock);
        }
      });
    for (int64_t r = 0; r < rows; ++r) W::add_sums(s.stretch.out + r * v_step, s.factor[r], s.sums + r * v_step, v_step);
    return;
  }
  const float* factor = s.factor;
  for (int64_t block = begin / kDecodeBlock * kDecodeBlock; block < end; block += kDecodeBlock) {
    const auto in_block = [&](int64_t at) { return (int)clamped(at - block, 0, kDecodeBlock); };
    const bool whole = begin <= block && end >= block + kDecodeBlock && args.v_dim % (2 * kWidth) == 0;
    b.count = count - block;
    const bool more = block + kDecodeBlock < end;
    const int64_t next = chunk + kChunk < seen.end ? (key + kChunk) * args.k_stride + unit.low * args.k_dim : unit.next;
    b.ahead_stride = more ? args.v_stride : args.k_stride;
    for (int64_t g = unit.low; g < unit.high; ++g) {
      b.tokens = stored<S>(args.v, (key + block) * args.v_stride + g * args.v_dim);
      b.ahead = more ? b.tokens + kDecodeBlock * args.v_stride : next < 0 ? b.tokens : stored<S>(args.k, next + (g - unit.low) * args.k_dim);
      for (int64_t r = 0; r < each; r += kDecodeRows) {
        const int64_t row = (g - unit.low) * each + r, n = at_most(each - r, kDecodeRows);
        b.x = words + (row * kChunk + block) / P::kPer;
        b.out = s.stretch.out + row * v_step;
        (whole ? decode_values_of<W, true>(n) : decode_values_of<W, false>(n))(
            b, in_block(from), in_block(to), in_block(begin), in_block(end), factor == kUnchanged ? factor : factor + row);
      }
    }
    factor = kUnchanged;
  }
}

// Stretches [first, last) of the keys; gives where their sums are.
template <class P, class W>
static const RowSums& decode_unit(const AttentionArgs<typename P::Element>& args, const DecodeUnit& unit, int64_t first,
                                  int64_t last, const DecodeScratch& s) {
  const int64_t each = args.heads / args.kv_heads, rows = (unit.high - unit.low) * each, v_step = padded(args.v_dim);
  const int64_t k_step = padded((args.k_dim + P::kPer - 1) / P::kPer);
  pack_along<P>(args.q + unit.q.row * args.q_stride + unit.low * each * args.k_dim, args.k_dim, rows, args.k_dim, s.queries,
                k_step);
  if constexpr (kInPlace<W>) {
    if (each > 1 && decode_in_place<W>(args))
      for (int64_t row = 0; row < rows; row += each) W::queries_across(s.queries + row * k_step, k_step, each, s.across + row * k_step);
  }
  const ScoreRule shared = score_rule(args, unit.low * each);
  const Stretch seen = keys_seen(args, unit.q.position, unit.q.k_len);
  for (int64_t stretch = first; stretch < last; ++stretch) {
    clear(s.stretch, rows, v_step);
    const int64_t begin = at_least(stretch * kKeyStretch, seen.begin / kChunk * kChunk);
    const int64_t end = at_most((stretch + 1) * kKeyStretch, seen.end);
    for (int64_t chunk = begin; chunk < end; chunk += kChunk) decode_chunk<P, W>(args, unit, seen, chunk, shared, s);
    if (last - first > 1)
      merge_stretch(args, unit.q, rows, stretch * kKeyStretch, s.total, s.stretch, v_step, exponent_unit(shared));
  }
  if (first >= last) clear(s.stretch, rows, v_step);
  return last - first > 1 ? s.total : s.stretch;
}

// Stretches of keys that a packed row sees.
template <class T> static inline Stretch stretches_of(const AttentionArgs<T>& args, const QueryRows& q) {
  const Stretch seen = keys_seen(args, q.position, q.k_len);
  if (seen.begin >= seen.end) return {0, 0};
  return {seen.begin / kKeyStretch, (seen.end + kKeyStretch - 1) / kKeyStretch};
}

// How a call is cut, by lengths: that moves no bits.
struct DecodeCut {
  int64_t parts;   // stretches of all rows, one after another, or 0 where rows stay whole
  int64_t groups;  // of heads
};
template <class T> static inline DecodeCut decode_cut(const AttentionArgs<T>& args) {
  int64_t parts = 0;
  for (int64_t row = 0; args.parts && row < args.q_rows; ++row) {
    const Stretch s = stretches_of(args, rows_of(args, sequence_of(args, row), row, 1));
    parts += s.end - s.begin;
  }
  if (parts <= args.q_rows || parts > attention_parts(args)) parts = 0;
  const int64_t units = at_least(parts > 0 ? parts : args.q_rows, 1);
  const int64_t groups = at_least(decode_groups(args), (kDecodeUnits + units - 1) / units);
  return {parts, at_most(groups, args.kv_heads)};
}

// The second kernel: parts -> output. Shares: stretches of all rows' heads.
template <class T> static void decode_merge(const AttentionArgs<T>& args, const Share& share) {
  if (decode_cut(args).parts == 0) return;
  const int64_t v_step = padded(args.v_dim), of_part = args.heads * part_floats(args.v_dim);
  const int64_t count = args.q_rows * args.heads;
  const RowSums nothing = decode_scratch(args, share.scratch).total;
  clear(nothing, 1, v_step);
  const int64_t low = count * share.index / share.count, high = count * (share.index + 1) / share.count;
  int64_t part = 0;
  for (int64_t row = 0; row < args.q_rows; ++row) {
    const QueryRows q = rows_of(args, sequence_of(args, row), row, 1);
    const Stretch s = stretches_of(args, q);
    for (int64_t head = at_least(low - row * args.heads, 0); head < at_most(high - row * args.heads, args.heads); ++head) {
      const float unit = exponent_unit(score_rule(args, head));
      float* first = args.parts + part * of_part + head * part_floats(args.v_dim);
      const auto sums_of = [&](int64_t i) {
        float* out = first + i * of_part;
        return RowSums{out, out + v_step, out + v_step + kWidth};
      };
      const RowSums total = s.begin < s.end ? sums_of(0) : nothing;
      for (int64_t i = 1; i < s.end - s.begin; ++i) merge_row(total, sums_of(i), v_step, unit);
      finish_rows(args, row, head, 1, 1, total, v_step, unit);
    }
    part += s.end - s.begin;
  }
}

template <class P, class W> static void decode_of(const AttentionArgs<typename P::Element>& args, const Share& share) {
  if (args.merge) return decode_merge(args, share);
  const DecodeScratch scratch = decode_scratch(args, share.scratch);
  const int64_t each = args.heads / args.kv_heads, v_step = padded(args.v_dim);
  const DecodeCut cut = decode_cut(args);
  const int64_t units = (cut.parts > 0 ? cut.parts : args.q_rows) * cut.groups;
  const int64_t low = units * share.index / share.count, high = units * (share.index + 1) / share.count;
  int64_t row = 0, before = 0;  // parts of the rows before
  for (int64_t at = low; at < high; ++at) {
    const int64_t group = at % cut.groups, item = at / cut.groups;
    if (cut.parts == 0) row = item;
    QueryRows q = rows_of(args, sequence_of(args, row), row, 1);
    Stretch s = stretches_of(args, q);
    while (cut.parts > 0 && item >= before + s.end - s.begin) {
      before += s.end - s.begin;
      ++row;
      q = rows_of(args, sequence_of(args, row), row, 1);
      s = stretches_of(args, q);
    }
    DecodeUnit unit = {q, args.kv_heads * group / cut.groups, args.kv_heads * (group + 1) / cut.groups, -1};
    if (at + 1 < high && cut.parts == 0) {
      const int64_t after = (at + 1) / cut.groups;
      const QueryRows rows = rows_of(args, sequence_of(args, after), after, 1);
      unit.next = rows.k_start * args.k_stride + args.kv_heads * ((at + 1) % cut.groups) / cut.groups * args.k_dim;
    }
    const int64_t head = unit.low * each, rows = (unit.high - unit.low) * each;
    if (cut.parts == 0) {
      const RowSums& sums = decode_unit<P, W>(args, unit, s.begin, s.end, scratch);
      finish_rows(args, row, head, rows, rows, sums, v_step, exponent_unit(score_rule(args, head)));
      continue;
    }
    const RowSums& sums = decode_unit<P, W>(args, unit, s.begin + item - before, s.begin + item - before + 1, scratch);
    float* part = args.parts + (item * args.heads + head) * part_floats(args.v_dim);
    for (int64_t r = 0; r < rows; ++r, part += part_floats(args.v_dim)) {
      memcpy(part, sums.out + r * v_step, (size_t)v_step * sizeof(float));
      store(part + v_step, load(sums.sums + r * kWidth));
      part[v_step + kWidth] = sums.max[r];
    }
  }
}
