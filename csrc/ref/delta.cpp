// The gated delta rule, token by token.
#include <math.h>

#include "ref/ref.h"

namespace mg::ref {
namespace {

// q and k as they count; gives what each was multiplied by.
struct Factors {
  double q, k;
};
Factors rows_of(const DeltaArgs<double>& args, int64_t row, int64_t head, double* q, double* k) {
  const int64_t at = (row * args.key_heads + head / (args.heads / args.key_heads)) * args.k_dim;
  double of_q = 0.0, of_k = 0.0;
  for (int64_t i = 0; i < args.k_dim; ++i) {
    of_q += args.q[at + i] * args.q[at + i];
    of_k += args.k[at + i] * args.k[at + i];
  }
  const Factors by = {args.normalize ? args.scale / sqrt(of_q + kDeltaEps) : args.scale,
                      args.normalize ? 1.0 / sqrt(of_k + kDeltaEps) : 1.0};
  for (int64_t i = 0; i < args.k_dim; ++i) q[i] = by.q * args.q[at + i], k[i] = by.k * args.k[at + i];
  return by;
}

// x = v - e^g S^T k, then after = e^g before + beta k x^T; they may be the same.
void advance(const DeltaArgs<double>& args, int64_t row, int64_t head, const double* k, double* x, const double* before,
             double* after) {
  const int64_t time = row * args.heads + head, values = args.v_dim;
  const double decay = exp(args.g[time]);
  for (int64_t j = 0; j < values; ++j) {
    x[j] = args.v[time * values + j];
    for (int64_t i = 0; i < args.k_dim; ++i) x[j] -= decay * k[i] * before[i * values + j];
  }
  for (int64_t i = 0; i < args.k_dim; ++i)
    for (int64_t j = 0; j < values; ++j)
      after[i * values + j] = decay * before[i * values + j] + args.beta[time] * k[i] * x[j];
}

void give(double& to, double x, int32_t accumulate) { to = accumulate ? to + x : x; }

}  // namespace

void gated_delta(const DeltaArgs<double>& args, const Share& share) {
  const int64_t keys = args.k_dim, values = args.v_dim, size = keys * values;
  double* state = static_cast<double*>(share.scratch);
  double *q = state + size, *k = q + keys, *x = k + keys;
  for (int64_t seq = 0; seq < args.seqs; ++seq)
    for (int64_t head = 0; head < args.heads; ++head) {
      const int64_t begin = args.q_start[seq], end = args.q_start[seq + 1];
      double* initial = args.state ? args.state + (seq * args.heads + head) * size : nullptr;
      for (int64_t i = 0; i < size; ++i) state[i] = initial ? initial[i] : 0.0;
      for (int64_t row = begin; row < end; ++row) {
        if (args.chunks && (row - begin) % kStateChunk == 0) {
          const int64_t chunk = first_state_chunk(begin, seq) + (row - begin) / kStateChunk;
          for (int64_t i = 0; i < size; ++i) args.chunks[(chunk * args.heads + head) * size + i] = state[i];
        }
        rows_of(args, row, head, q, k);
        advance(args, row, head, k, x, state, state);
        for (int64_t j = 0; j < values; ++j) {
          double o = 0.0;
          for (int64_t i = 0; i < keys; ++i) o += q[i] * state[i * values + j];
          args.o[(row * args.heads + head) * values + j] = o;
        }
      }
      for (int64_t i = 0; i < size && initial && begin < end; ++i) initial[i] = state[i];
    }
}

void gated_delta_backward(const DeltaBackwardArgs<double>& args, const Share& share) {
  const DeltaArgs<double>& fwd = args.fwd;
  const int64_t keys = fwd.k_dim, values = fwd.v_dim, size = keys * values, each = fwd.heads / fwd.key_heads;
  double* states = static_cast<double*>(share.scratch);  // before each row of a chunk, and after the last
  double* dstate = states + (kStateChunk + 1) * size;
  double *q = dstate + size, *k = q + keys, *dq = k + keys, *dk = dq + keys, *x = dk + keys, *r = x + values;
  for (int64_t i = 0; i < fwd.tokens * fwd.key_heads * keys; ++i) {
    give(args.dq[i], 0.0, args.accumulate_dq);
    give(args.dk[i], 0.0, args.accumulate_dk);
  }
  for (int64_t seq = 0; seq < fwd.seqs; ++seq)
    for (int64_t head = 0; head < fwd.heads; ++head) {
      const int64_t begin = fwd.q_start[seq], end = fwd.q_start[seq + 1];
      for (int64_t i = 0; i < size; ++i) dstate[i] = 0.0;
      for (int64_t row = end - 1; row >= begin; --row) {
        const int64_t index = (row - begin) / kStateChunk, first = begin + index * kStateChunk;
        if (row == end - 1 || (row + 1 - begin) % kStateChunk == 0) {
          const double* kept = fwd.chunks + ((first_state_chunk(begin, seq) + index) * fwd.heads + head) * size;
          for (int64_t i = 0; i < size; ++i) states[i] = kept[i];
          for (int64_t at = first; at <= row; ++at) {
            rows_of(fwd, at, head, q, k);
            advance(fwd, at, head, k, x, states + (at - first) * size, states + (at - first + 1) * size);
          }
        }
        const double* before = states + (row - first) * size;
        double* after = states + (row - first + 1) * size;
        const Factors by = rows_of(fwd, row, head, q, k);
        advance(fwd, row, head, k, x, before, after);
        const int64_t time = row * fwd.heads + head, at = (row * fwd.key_heads + head / each) * keys;
        const double *d_o = args.d_o + time * values, decay = exp(fwd.g[time]), beta = fwd.beta[time];
        double dbeta = 0.0, dlog = 0.0, along_q = 0.0, along_k = 0.0;
        for (int64_t i = 0; i < keys; ++i) {
          dq[i] = dk[i] = 0.0;
          for (int64_t j = 0; j < values; ++j) {
            dq[i] += after[i * values + j] * d_o[j];
            dstate[i * values + j] += q[i] * d_o[j];
            dk[i] += dstate[i * values + j] * beta * x[j];
          }
        }
        for (int64_t j = 0; j < values; ++j) {
          r[j] = 0.0;  // the gradient of x
          for (int64_t i = 0; i < keys; ++i) r[j] += dstate[i * values + j] * k[i];
          dbeta += r[j] * x[j];
          r[j] *= beta;
          give(args.dv[time * values + j], r[j], args.accumulate_dv);
        }
        for (int64_t i = 0; i < keys; ++i)
          for (int64_t j = 0; j < values; ++j) {
            dk[i] -= decay * before[i * values + j] * r[j];
            double& d = dstate[i * values + j];
            d = decay * (d - k[i] * r[j]);
            dlog += d * before[i * values + j];
          }
        give(args.dg[time], dlog, args.accumulate_dg);
        give(args.dbeta[time], dbeta, args.accumulate_dbeta);
        for (int64_t i = 0; i < keys && fwd.normalize; ++i) along_q += dq[i] * q[i], along_k += dk[i] * k[i];
        for (int64_t i = 0; i < keys; ++i) {
          args.dq[at + i] += by.q * (dq[i] - along_q / (fwd.scale * fwd.scale) * q[i]);
          args.dk[at + i] += by.k * (dk[i] - along_k * k[i]);
        }
      }
    }
}

}  // namespace mg::ref
