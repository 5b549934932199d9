// RWKV-7's time mixing, token by token.
#include "ref/ref.h"

namespace mg::ref {
namespace {

// sa = before^T a, after = diag(w) before + b sa^T + k v^T; they may be the same.
void advance(const Rwkv7Args<double>& args, int64_t time, const double* before, double* after, double* sa) {
  const int64_t keys = args.k_dim, values = args.v_dim;
  for (int64_t j = 0; j < values; ++j) {
    sa[j] = 0.0;
    for (int64_t i = 0; i < keys; ++i) sa[j] += args.a[time * keys + i] * before[i * values + j];
  }
  for (int64_t i = 0; i < keys; ++i)
    for (int64_t j = 0; j < values; ++j)
      after[i * values + j] = args.w[time * keys + i] * before[i * values + j] + args.b[time * keys + i] * sa[j] +
                              args.k[time * keys + i] * args.v[time * values + j];
}

int64_t kept_at(const Rwkv7Args<double>& args, int64_t seq, int64_t head, int64_t row) {
  const int64_t begin = args.q_start[seq], place = begin / kRwkvStride + seq + (row - begin) / kRwkvStride;
  return (place * args.heads + head) * args.k_dim * args.v_dim;
}

void give(double& to, double x, int32_t accumulate) { to = accumulate ? to + x : x; }

}  // namespace

void rwkv7(const Rwkv7Args<double>& args, const Share& share) {
  const int64_t keys = args.k_dim, values = args.v_dim, size = keys * values;
  double *state = static_cast<double*>(share.scratch), *sa = state + size;
  for (int64_t seq = 0; seq < args.seqs; ++seq)
    for (int64_t head = 0; head < args.heads; ++head) {
      const int64_t begin = args.q_start[seq], end = args.q_start[seq + 1];
      double* initial = args.state ? args.state + (seq * args.heads + head) * size : nullptr;
      for (int64_t i = 0; i < size; ++i) state[i] = initial ? initial[i] : 0.0;
      for (int64_t row = begin; row < end; ++row) {
        if (args.kept && (row - begin) % kRwkvStride == 0)
          for (int64_t i = 0; i < size; ++i) args.kept[kept_at(args, seq, head, row) + i] = state[i];
        const int64_t time = row * args.heads + head;
        advance(args, time, state, state, sa);
        for (int64_t j = 0; j < values; ++j) {
          double y = 0.0;
          for (int64_t i = 0; i < keys; ++i) y += args.r[time * keys + i] * state[i * values + j];
          args.y[time * values + j] = y;
        }
      }
      for (int64_t i = 0; i < size && initial && begin < end; ++i) initial[i] = state[i];
    }
}

void rwkv7_backward(const Rwkv7BackwardArgs<double>& args, const Share& share) {
  const Rwkv7Args<double>& fwd = args.fwd;
  const int64_t keys = fwd.k_dim, values = fwd.v_dim, size = keys * values;
  double* states = static_cast<double*>(share.scratch);  // before each row of a stretch, and after the last
  double *dstate = states + (kRwkvStride + 1) * size, *sa = dstate + size, *dsa = sa + values;
  for (int64_t seq = 0; seq < fwd.seqs; ++seq)
    for (int64_t head = 0; head < fwd.heads; ++head) {
      const int64_t begin = fwd.q_start[seq], end = fwd.q_start[seq + 1];
      for (int64_t i = 0; i < size; ++i) dstate[i] = 0.0;
      for (int64_t row = end - 1; row >= begin; --row) {
        const int64_t first = begin + (row - begin) / kRwkvStride * kRwkvStride;
        if (row == end - 1 || (row + 1 - begin) % kRwkvStride == 0) {
          for (int64_t i = 0; i < size; ++i) states[i] = fwd.kept[kept_at(fwd, seq, head, first) + i];
          for (int64_t each = first; each <= row; ++each)
            advance(fwd, each * fwd.heads + head, states + (each - first) * size, states + (each - first + 1) * size, sa);
        }
        const int64_t time = row * fwd.heads + head;
        const double* before = states + (row - first) * size;
        double* after = states + (row - first + 1) * size;
        advance(fwd, time, before, after, sa);
        const double *dy = args.dy + time * values, *v = fwd.v + time * values;
        for (int64_t j = 0; j < values; ++j) {
          double dv = 0.0;
          dsa[j] = 0.0;
          for (int64_t i = 0; i < keys; ++i) {
            double& d = dstate[i * values + j];
            d += fwd.r[time * keys + i] * dy[j];
            dv += fwd.k[time * keys + i] * d;
            dsa[j] += fwd.b[time * keys + i] * d;
          }
          give(args.dv[time * values + j], dv, args.accumulate_dv);
        }
        for (int64_t i = 0; i < keys; ++i) {
          const int64_t at = time * keys + i;
          double dr = 0.0, dw = 0.0, dk = 0.0, da = 0.0, db = 0.0;
          for (int64_t j = 0; j < values; ++j) {
            double& d = dstate[i * values + j];
            const double s = before[i * values + j];
            dr += after[i * values + j] * dy[j];
            dw += s * d;
            dk += v[j] * d;
            da += s * dsa[j];
            db += sa[j] * d;
            d = fwd.w[at] * d + fwd.a[at] * dsa[j];
          }
          give(args.dr[at], dr, args.accumulate_dr);
          give(args.dw[at], dw, args.accumulate_dw);
          give(args.dk[at], dk, args.accumulate_dk);
          give(args.da[at], da, args.accumulate_da);
          give(args.db[at], db, args.accumulate_db);
        }
      }
    }
}

}  // namespace mg::ref
