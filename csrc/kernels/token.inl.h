// Kernels that look something up for each token: embeddings, rotary positions, cross-entropy.

// y[t] (+)= table[ids[t]]. Shares: rows_per_share(width) tokens. Rows are copied as they are; the row after the next, which
// no hardware foresees, is asked for into L2.
template <class T> void embedding(const EmbeddingArgs<T>& args, const Share& share) {
  constexpr int64_t kLine = 64, kAhead = 2;
  const int64_t width = args.width, bytes = width * (int64_t)sizeof(T);
  const Range tokens = range_of(share.index, args.tokens, rows_per_share(width));
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const T* row = args.table + args.ids[t] * width;
    T* y = args.y + t * width;
    if (args.accumulate) {
      each_vec(0, width, [&](int64_t i, auto part) { put(y + i, add(get(y + i, part), get(row + i, part)), part); });
      continue;
    }
    const char* const ahead = (const char*)(args.table + args.ids[at_most(t + kAhead, args.tokens - 1)] * width);
    const char* const from = (const char*)row;
    char* const to = (char*)y;
    int64_t i = 0;
    for (; i + kLine <= bytes; i += kLine) {
      __builtin_prefetch(ahead + i, 0, 2);
      ask_to_write(to + kAhead * bytes + i, Full{});
      memcpy(to + i, from + i, kLine);
    }
    if (i < bytes) memcpy(to + i, from + i, (size_t)(bytes - i));
  }
}

// dtable[ids[t]] += dy[t], in the order of t. Shares: kColumnBlock columns of the table, so that no two write one number.
template <class T> void embedding_backward(const EmbeddingBackwardArgs<T>& args, const Share& share) {
  const int64_t width = args.width;
  const Range columns = range_of(share.index, width, kColumnBlock);
  const int64_t count = columns.end - columns.begin;
  if (!args.accumulate)
    for (int64_t v = 0; v < args.vocab; ++v) memset(args.dtable + v * width + columns.begin, 0, (size_t)count * sizeof(Wide<T>));
  for (int64_t t = 0; t < args.tokens; ++t) {
    const T* dy = args.dy + t * width;
    Wide<T>* row = args.dtable + args.ids[t] * width;
    each_vec(columns.begin, columns.end, [&](int64_t i, auto part) {
      put(row + i, add(get(row + i, part), get(dy + i, part)), part);
    });
  }
}

#include "kernels/rope.inl.h"

// Sum of exp(x - top) of a row, without keeping the exponentials.
template <class T> static inline double sum_exp(const T* x, int64_t n, float top) {
  const Vec shift = set1(-top);
  return blocked_sum(n, [&](int64_t i, auto part) { return lanes_or(exp(add(get(x + i, part), shift)), part, 0.0f); });
}

// losses[r] = log(sum exp(x)) - x[target], 0 where target < 0; dlogits = (softmax - onehot) * inv_count[0]. dlogits may
// alias logits: it holds the exponentials between the two passes. Shares: rows_per_share(vocab) rows.
// With smoothing e and z: loss = log sum - (1 - e) (x[target] - top) - e mean(x - top) + z lse^2, and
// dlogits = (softmax * (1 + 2 z lse) - (1 - e) onehot - e / V) * inv_count[0].
template <class T> void cross_entropy(const CrossEntropyArgs<T>& args, const Share& share) {
  const int64_t vocab = args.vocab;
  const double inv_count = args.inv_count ? args.inv_count[0] : 1.0;
  const Range rows = range_of(share.index, args.rows, rows_per_share(vocab));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* x = args.logits + row * vocab;
    T* dx = args.dlogits ? args.dlogits + row * vocab : nullptr;
    const int32_t target = args.targets[row];
    if (target < 0) {
      args.losses[row] = 0.0f;
      if (dx) memset(dx, 0, (size_t)vocab * sizeof(T));
      continue;
    }
    const Vec one = set1(1.0f);
    const float top = scaled_max(x, vocab, one);
    const double below = (double)top - (double)value_of(x[target]), smoothing = args.label_smoothing;
    double average = 0.0;  // of x - top, read before dx may overwrite x
    if (smoothing > 0.0) {
      const Vec shift = set1(-top);
      average = blocked_sum(vocab, [&](int64_t i, auto part) { return lanes_or(add(get(x + i, part), shift), part, 0.0f); });
      average /= (double)vocab;
    }
    const double sum = dx ? store_exp(x, dx, vocab, one, top) : sum_exp(x, vocab, top);
    const double log_sum = ::log(sum), lse = log_sum + (double)top;
    double loss = log_sum + below;
    if (smoothing > 0.0) loss -= smoothing * (below + average);
    if (args.z_loss > 0.0) loss += args.z_loss * lse * lse;
    args.losses[row] = (float)loss;
    if (!dx) continue;
    const double weight = args.z_loss > 0.0 ? 1.0 + 2.0 * args.z_loss * lse : 1.0;
    const double flat = smoothing / (double)vocab, factor = inv_count / sum;
    const double chosen = kNarrow<T> ? ::exp(-below) : (double)value_of(dx[target]);
    const float gradient = (float)((chosen * weight - sum * (1.0 - smoothing + flat)) * factor);
    scale_exp(x, dx, vocab, one, top, (float)(factor * weight), (float)(flat * inv_count));
    assign(dx[target], gradient);
  }
}

// out[0] = 1 / max(1, number of targets >= 0). One share.
void count_targets(const CountArgs<float>& args, const Share&) {
  int64_t count = 0;
  for (int64_t i = 0; i < args.n; ++i) count += args.targets[i] >= 0;
  args.out[0] = (float)(1.0 / (double)(count > 1 ? count : 1));
}
