// Who sees whom, and what is done to a raw score. Every row sees one stretch of keys, every key one stretch of rows.

// Consecutive query rows of one sequence.
struct QueryRows {
  int64_t row;       // first packed row
  int64_t count;
  int64_t position;  // of the first row
  int64_t k_start, k_len;
};
// How far from a unit's rows the next one's lie, in elements: those of the next heads, or of the next sequence. A head's rows
// lie between those of others, which no hardware foresees: a unit asks for the next one's while it reads its own.
struct NextUnit {
  int64_t q, k, v, o;
};
template <class T> static inline NextUnit next_unit(const AttentionArgs<T>& args, int64_t seq, int64_t group) {
  const int64_t each = args.heads / args.kv_heads;
  if (group + 1 < args.kv_heads) return {each * args.k_dim, args.k_dim, args.v_dim, each * args.v_dim};
  if (seq + 1 >= args.seqs) return {0, 0, 0, 0};
  const int64_t rows = args.q_start[seq + 1] - args.q_start[seq], keys = args.k_start[seq + 1] - args.k_start[seq];
  return {rows * args.q_stride - group * each * args.k_dim, keys * args.k_stride - group * args.k_dim,
          keys * args.v_stride - group * args.v_dim, rows * args.o_stride - group * each * args.v_dim};
}
// From a chunk's rows to those that are read next, `next` from the first chunk.
static inline int64_t ahead_of_chunk(int64_t chunk, bool more, int64_t stride, int64_t next) {
  return more ? kKeyChunk * stride : next ? next - chunk * stride : 0;
}
template <class T> static inline void ask_for(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(p + i, 0, 2);
}
// Rows that will be written when their sums are complete. Narrow ones, half as many lines beside fast arithmetic, lose by it.
template <class T> static inline void ask_to_write_rows(const T* p, int64_t stride, int64_t rows, int64_t width) {
  if constexpr (kNarrow<T>) return;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; i += 64 / (int64_t)sizeof(T)) ask_to_write(p + r * stride + i, Full{});
}

struct Stretch {
  int64_t begin, end;
};

static inline int64_t clamped(int64_t x, int64_t lo, int64_t hi) { return x < lo ? lo : x > hi ? hi : x; }
// A window beyond any sequence is as good as one that would overflow.
template <class T>
static inline int64_t window_of(const AttentionArgs<T>& args) { return clamped(args.window, -1, (int64_t)1 << 40); }

template <class T>
static inline Stretch keys_seen(const AttentionArgs<T>& args, int64_t position, int64_t k_len) {
  const int64_t window = window_of(args);
  int64_t begin = 0, end = k_len;
  if (args.causal && position + 1 < end) end = position + 1;
  if (window >= 0) {
    if (position - window + 1 > begin) begin = position - window + 1;
    if (position + window < end) end = position + window;
  }
  return {begin, end > begin ? end : begin};
}

// [begin, end) of a chunk's keys for each of up to kChunk rows, or of rows for each key.
struct Spans {
  int begin[kChunk], end[kChunk];
};

static inline void same_spans(int64_t count, int end, Spans& spans) {
  for (int64_t i = 0; i < count; ++i) {
    spans.begin[i] = 0;
    spans.end[i] = end;
  }
}

// Of rows [low, high), `each` heads to a query row.
template <class T>
static inline void keys_of_rows(const AttentionArgs<T>& args, const QueryRows& q, int64_t each, int64_t low, int64_t high,
                                int64_t chunk, Spans& spans) {
  int64_t row = low / each, left = each - low % each;
  Stretch seen = keys_seen(args, q.position + row, q.k_len);
  for (int64_t r = 0; r < high - low; ++r, --left) {
    if (left == 0) {
      seen = keys_seen(args, q.position + ++row, q.k_len);
      left = each;
    }
    spans.begin[r] = (int)clamped(seen.begin - chunk, 0, kChunk);
    spans.end[r] = (int)clamped(seen.end - chunk, 0, kChunk);
  }
}

template <class T>
static inline void rows_of_keys(const AttentionArgs<T>& args, const QueryRows& q, int64_t chunk, int64_t keys, Spans& spans) {
  const int64_t window = window_of(args);
  for (int64_t k = 0; k < keys; ++k) {
    const int64_t key = chunk + k - q.position;  // the row that stands at this key
    int64_t begin = 0, end = q.count;
    if (args.causal) begin = key;
    if (window >= 0) {
      if (key - window + 1 > begin) begin = key - window + 1;
      if (key + window < end) end = key + window;
    }
    spans.begin[k] = (int)clamped(begin, 0, q.count);
    spans.end[k] = (int)clamped(end, spans.begin[k], q.count);
  }
}

// Whether every row sees all keys of [chunk, chunk + keys). Stretches only move forward with the row.
template <class T>
static inline bool all_seen(const AttentionArgs<T>& args, const QueryRows& q, int64_t chunk, int64_t keys) {
  return keys_seen(args, q.position, q.k_len).end >= chunk + keys &&
         keys_seen(args, q.position + q.count - 1, q.k_len).begin <= chunk;
}

// Query rows that see something of keys [chunk, chunk + keys), [first, behind), and among them those that see all of these keys and
// go together, [whole, partly).
struct RowsSeeing {
  int64_t first, whole, partly, behind;
};
template <class T>
static inline RowsSeeing rows_seeing(const AttentionArgs<T>& args, const QueryRows& q, int64_t chunk, int64_t keys) {
  const int64_t window = window_of(args);
  const auto row_at = [&](int64_t position) { return clamped(position - q.position, 0, q.count); };
  const auto seen_up_to = [&](int64_t end) {  // the first row that sees so far, if there are so many keys
    const int64_t causal = args.causal ? row_at(end - 1) : 0;
    return window < 0 ? causal : at_least(causal, row_at(end - window));
  };
  RowsSeeing rows = {seen_up_to(chunk + 1), seen_up_to(chunk + keys), q.count, q.count};
  if (window >= 0) {
    rows.behind = at_least(row_at(chunk + keys + window - 1), rows.first);
    rows.partly = at_most(row_at(chunk + window), rows.behind);
  }
  // Whole steps of spans go together, also the row that sees all keys as the last of them.
  const int64_t steps = (rows.whole - rows.first + kSpanStep - 1) / kSpanStep;
  rows.whole = at_most(rows.first + steps * kSpanStep, rows.behind);
  rows.partly = at_least(rows.partly, rows.whole);
  return rows;
}

// Chunks that some of the rows see: [begin, end), begin a multiple of kChunk.
template <class T>
static inline Stretch chunks_seen(const AttentionArgs<T>& args, const QueryRows& q) {
  const Stretch last = keys_seen(args, q.position + q.count - 1, q.k_len);
  Stretch first = keys_seen(args, q.position, q.k_len);
  for (int r = 1; r < q.count && first.begin >= first.end; ++r) first = keys_seen(args, q.position + r, q.k_len);
  if (first.begin >= first.end) return {0, 0};
  return {first.begin / kChunk * kChunk, last.end > first.end ? last.end : first.end};
}

// Raw product -> score: scale, soft cap, bias by distance. A plain rule is a positive factor: raw products keep the order
// of the scores, and the factor goes into the exponential.
struct ScoreRule {
  float scale, cap, inverse_cap, slope;
  bool capped, biased, plain;
};
template <class T>
static inline ScoreRule score_rule(const AttentionArgs<T>& args, int64_t head) {
  ScoreRule rule;
  rule.scale = (float)args.scale;
  rule.capped = args.soft_cap > 0;
  rule.cap = (float)args.soft_cap;
  rule.inverse_cap = rule.capped ? (float)(args.scale / args.soft_cap) : 0.0f;
  rule.biased = args.alibi != nullptr;
  rule.slope = rule.biased ? args.alibi[head] : 0.0f;
  rule.plain = !rule.capped && !rule.biased && args.scale > 0;
  return rule;
}

// `offset` is k_pos - q_pos. `bend` becomes the tanh of the soft cap, whose derivative is 1 - bend^2.
static inline Vec score_of(const ScoreRule& rule, Vec raw, Vec offset, Vec& bend) {
  Vec s;
  if (rule.capped) {
    bend = tanh(mul(raw, set1(rule.inverse_cap)));
    s = mul(bend, set1(rule.cap));
  } else {
    s = mul(raw, set1(rule.scale));
  }
  return rule.biased ? fma(set1(rule.slope), offset, s) : s;
}

// x where begin <= lane + first < end, else `other`. Only vectors at the ends of a stretch pay for it.
static inline Vec keep_seen(Vec x, Vec other, int first, int begin, int end) {
  const Vec lane = load(kLanes);
  if (first + kWidth > end) x = select(lt(lane, set1((float)(end - first))), x, other);
  if (first < begin) x = select(lt(lane, set1((float)(begin - first))), other, x);
  return x;
}
