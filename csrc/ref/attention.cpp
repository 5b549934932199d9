// Attention as the formulas say it: one row at a time, no tiles, no online softmax.
#include <math.h>

#include "kernels/tiles.h"
#include "ref/ref.h"

namespace mg::ref {
namespace {

// One query row: its place, and the keys it could see.
struct Row {
  int64_t index, position, k_start, k_len;
};

Row row_of(const AttentionArgs<double>& args, int64_t seq, int64_t index) {
  const int64_t k_len = args.k_len[seq];
  return {index, k_len - args.q_start[seq + 1] + index, args.k_start[seq], k_len};
}

bool sees(const AttentionArgs<double>& args, const Row& row, int64_t key) {
  if (args.causal && key > row.position) return false;
  const int64_t distance = key > row.position ? key - row.position : row.position - key;
  return args.window < 0 || distance < args.window;
}

const double* query(const AttentionArgs<double>& args, const Row& row, int64_t head) {
  return args.q + row.index * args.q_stride + head * args.k_dim;
}
int64_t key_at(const AttentionArgs<double>& args, const Row& row, int64_t head, int64_t key) {
  return (row.k_start + key) * args.k_stride + head / (args.heads / args.kv_heads) * args.k_dim;
}
int64_t value_at(const AttentionArgs<double>& args, const Row& row, int64_t head, int64_t key) {
  return (row.k_start + key) * args.v_stride + head / (args.heads / args.kv_heads) * args.v_dim;
}

double number(const AttentionArgs<double>& args, const double* numbers, int64_t at) {
  switch (args.kv) {
    case KvType::f32: return reinterpret_cast<const float*>(numbers)[at];
    case KvType::bf16: return value_of(reinterpret_cast<const bf16*>(numbers)[at]);
    case KvType::int8: return reinterpret_cast<const int8_t*>(numbers)[at];
    case KvType::same: break;
  }
  return numbers[at];
}
double scale_of(const AttentionArgs<double>& args, const float* scales, const Row& row, int64_t head, int64_t key) {
  if (args.kv != KvType::int8) return 1;
  return scales[head / (args.heads / args.kv_heads) * (args.k_rows + kKeyChunk) + row.k_start + key];
}

// `bend` becomes the derivative of the score by scale * q.k.
double score(const AttentionArgs<double>& args, const Row& row, int64_t head, int64_t key, double* bend) {
  const double* q = query(args, row, head);
  const int64_t at = key_at(args, row, head, key);
  double s = 0;
  for (int64_t i = 0; i < args.k_dim; ++i) s += q[i] * number(args, args.k, at + i);
  s *= args.scale * scale_of(args, args.k_scales, row, head, key);
  *bend = 1;
  if (args.soft_cap > 0) {
    const double t = tanh(s / args.soft_cap);
    s = args.soft_cap * t;
    *bend = 1 - t * t;
  }
  if (args.alibi) s += args.alibi[head] * static_cast<double>(key - row.position);
  return s;
}

void attend(const AttentionArgs<double>& args, const Row& row, int64_t head, double* scores) {
  double max = -INFINITY, sum = 0, bend;
  bool any = false;
  for (int64_t j = 0; j < row.k_len; ++j) {
    if (!sees(args, row, j)) continue;
    any = true;
    scores[j] = score(args, row, head, j, &bend);
    if (scores[j] > max) max = scores[j];
  }
  double* o = args.o + row.index * args.o_stride + head * args.v_dim;
  for (int64_t i = 0; i < args.v_dim; ++i) o[i] = 0;
  for (int64_t j = 0; j < row.k_len; ++j) {
    if (!sees(args, row, j)) continue;
    const double p = exp(scores[j] - max);
    const int64_t at = value_at(args, row, head, j);
    const double times = p * scale_of(args, args.v_scales, row, head, j);
    sum += p;
    for (int64_t i = 0; i < args.v_dim; ++i) o[i] += times * number(args, args.v, at + i);
  }
  for (int64_t i = 0; i < args.v_dim && any; ++i) o[i] /= sum;
  if (args.lse) args.lse[head * args.q_rows + row.index] = any ? max + log(sum) : -INFINITY;
}

void attend_backward(const AttentionBackwardArgs<double>& args, const Row& row, int64_t head, double* probs, double* dprobs) {
  const AttentionArgs<double>& fwd = args.fwd;
  const double lse = fwd.lse[head * fwd.q_rows + row.index];
  const double* d_o = args.d_o + row.index * fwd.o_stride + head * fwd.v_dim;
  const double* q = query(fwd, row, head);
  double* dq = args.dq + row.index * fwd.q_stride + head * fwd.k_dim;
  double mean = 0, bend;  // of dprobs under probs
  for (int64_t j = 0; j < row.k_len; ++j) {
    if (!sees(fwd, row, j)) continue;
    const int64_t at = value_at(fwd, row, head, j);
    probs[j] = exp(score(fwd, row, head, j, &bend) - lse);
    dprobs[j] = 0;
    for (int64_t i = 0; i < fwd.v_dim; ++i) {
      dprobs[j] += d_o[i] * fwd.v[at + i];
      args.dv[at + i] += probs[j] * d_o[i];
    }
    mean += probs[j] * dprobs[j];
  }
  for (int64_t j = 0; j < row.k_len; ++j) {
    if (!sees(fwd, row, j)) continue;
    const int64_t at = key_at(fwd, row, head, j);
    score(fwd, row, head, j, &bend);
    const double d = probs[j] * (dprobs[j] - mean) * bend * fwd.scale;
    for (int64_t i = 0; i < fwd.k_dim; ++i) {
      dq[i] += d * fwd.k[at + i];
      args.dk[at + i] += d * q[i];
    }
  }
}

void clear(double* p, int64_t rows, int64_t stride, int64_t width) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) p[r * stride + i] = 0;
}

}  // namespace

void attention(const AttentionArgs<double>& args, const Share& share) {
  const int64_t head = share.index;
  for (int64_t seq = 0; seq < args.seqs; ++seq)
    for (int64_t i = args.q_start[seq]; i < args.q_start[seq + 1]; ++i)
      attend(args, row_of(args, seq, i), head, static_cast<double*>(share.scratch));
}

void attention_backward(const AttentionBackwardArgs<double>& args, const Share& share) {
  const AttentionArgs<double>& fwd = args.fwd;
  const int64_t seq = share.index / fwd.kv_heads, group = share.index % fwd.kv_heads;
  const auto clear_gaps = [&](int64_t heads) {
    each_key_gap(fwd, seq, keys_in_order(fwd), [&](int64_t from, int64_t to) {
      if (!args.accumulate_dk) clear(args.dk + from * fwd.k_stride + group * fwd.k_dim, to - from, fwd.k_stride, heads * fwd.k_dim);
      if (!args.accumulate_dv) clear(args.dv + from * fwd.v_stride + group * fwd.v_dim, to - from, fwd.v_stride, heads * fwd.v_dim);
    });
  };
  if (fwd.seqs == 0 && share.index == 0) clear_gaps(fwd.kv_heads);
  if (seq >= fwd.seqs) return;
  clear_gaps(1);
  double* scratch = static_cast<double*>(share.scratch);
  const int64_t each = fwd.heads / fwd.kv_heads, begin = fwd.q_start[seq], end = fwd.q_start[seq + 1];
  const int64_t k_start = fwd.k_start[seq], k_len = fwd.k_len[seq];
  if (!args.accumulate_dk) clear(args.dk + k_start * fwd.k_stride + group * fwd.k_dim, k_len, fwd.k_stride, fwd.k_dim);
  if (!args.accumulate_dv) clear(args.dv + k_start * fwd.v_stride + group * fwd.v_dim, k_len, fwd.v_stride, fwd.v_dim);
  if (!args.accumulate_dq)
    clear(args.dq + begin * fwd.q_stride + group * each * fwd.k_dim, end - begin, fwd.q_stride, each * fwd.k_dim);
  for (int64_t head = group * each; head < (group + 1) * each; ++head)
    for (int64_t i = begin; i < end; ++i) attend_backward(args, row_of(fwd, seq, i), head, scratch, scratch + fwd.k_rows);
}

}  // namespace mg::ref
