// The state-space recurrence, token by token.
#include <math.h>

#include "ref/ref.h"

namespace mg::ref {
namespace {

struct Time {
  double dt, slope;  // d, and its derivative by dt
};
Time time_of(const SsdArgs<double>& args, int64_t row, int64_t head) {
  double raw = args.dt[row * args.heads + head] + (args.dt_bias ? args.dt_bias[head] : 0.0);
  Time time = {raw, 1.0};
  if (args.softplus) time = {raw > 0 ? raw + log1p(exp(-raw)) : log1p(exp(raw)), 1.0 / (1.0 + exp(-raw))};
  if (time.dt < args.dt_min) time = {args.dt_min, 0.0};
  if (time.dt > args.dt_max) time = {args.dt_max, 0.0};
  return time;
}

struct Rows {
  const double *x, *b, *c;
};
Rows rows_of(const SsdArgs<double>& args, int64_t row, int64_t head) {
  const int64_t group = head / (args.heads / args.groups), at = (row * args.groups + group) * args.state_dim;
  return {args.x + (row * args.heads + head) * args.head_dim, args.b + at, args.c + at};
}

// after = exp(d a) before + d x b^T; they may be the same.
void advance(const SsdArgs<double>& args, int64_t row, int64_t head, const double* before, double* after) {
  const Time time = time_of(args, row, head);
  const Rows at = rows_of(args, row, head);
  const double decay = exp(time.dt * args.a[head]);
  for (int64_t p = 0; p < args.head_dim; ++p)
    for (int64_t n = 0; n < args.state_dim; ++n) {
      const int64_t i = p * args.state_dim + n;
      after[i] = decay * before[i] + time.dt * at.x[p] * at.b[n];
    }
}

}  // namespace

void ssd(const SsdArgs<double>& args, const Share& share) {
  double* state = static_cast<double*>(share.scratch);
  const int64_t size = args.head_dim * args.state_dim;
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
        advance(args, row, head, state, state);
        const Rows at = rows_of(args, row, head);
        for (int64_t p = 0; p < args.head_dim; ++p) {
          double y = args.skip ? args.skip[head] * at.x[p] : 0.0;
          for (int64_t n = 0; n < args.state_dim; ++n) y += state[p * args.state_dim + n] * at.c[n];
          args.y[(row * args.heads + head) * args.head_dim + p] = y;
        }
      }
      for (int64_t i = 0; i < size && initial && begin < end; ++i) initial[i] = state[i];
    }
}

void ssd_backward(const SsdBackwardArgs<double>& args, const Share& share) {
  const SsdArgs<double>& fwd = args.fwd;
  const int64_t size = fwd.head_dim * fwd.state_dim, each = fwd.heads / fwd.groups;
  double* states = static_cast<double*>(share.scratch);  // before each row of a chunk, and after the last
  double* dstate = states + (kStateChunk + 1) * size;
  for (int64_t i = 0; i < ssd_blocks(fwd.heads, fwd.groups) * fwd.tokens * fwd.groups * fwd.state_dim; ++i)
    args.part_db[i] = args.part_dc[i] = 0.0;
  for (int64_t seq = 0; seq < fwd.seqs; ++seq)
    for (int64_t head = 0; head < fwd.heads; ++head) {
      const int64_t begin = fwd.q_start[seq], end = fwd.q_start[seq + 1];
      double da = 0.0, dskip = 0.0, dbias = 0.0;
      for (int64_t i = 0; i < size; ++i) dstate[i] = 0.0;
      for (int64_t row = end - 1; row >= begin; --row) {
        const int64_t index = (row - begin) / kStateChunk, first = begin + index * kStateChunk;
        if (row == end - 1 || (row + 1 - begin) % kStateChunk == 0) {
          const double* kept = fwd.chunks + ((first_state_chunk(begin, seq) + index) * fwd.heads + head) * size;
          for (int64_t i = 0; i < size; ++i) states[i] = kept[i];
          for (int64_t r = first; r <= row; ++r) advance(fwd, r, head, states + (r - first) * size, states + (r - first + 1) * size);
        }
        const double *before = states + (row - first) * size, *after = before + size;
        const Time time = time_of(fwd, row, head);
        const Rows at = rows_of(fwd, row, head);
        const double decay = exp(time.dt * fwd.a[head]);
        const double* dy = args.dy + (row * fwd.heads + head) * fwd.head_dim;
        const int64_t block = head % each / kSsdHeads, group = head / each;
        double* db = args.part_db + ((block * fwd.tokens + row) * fwd.groups + group) * fwd.state_dim;
        double* dc = args.part_dc + (db - args.part_db);
        double dtime = 0.0, ddecay = 0.0;
        for (int64_t p = 0; p < fwd.head_dim; ++p) {
          double dx = fwd.skip ? fwd.skip[head] * dy[p] : 0.0;
          dskip += dy[p] * at.x[p];
          for (int64_t n = 0; n < fwd.state_dim; ++n) {
            const int64_t i = p * fwd.state_dim + n;
            dc[n] += dy[p] * after[i];
            dstate[i] += dy[p] * at.c[n];
            dx += dstate[i] * time.dt * at.b[n];
            db[n] += dstate[i] * time.dt * at.x[p];
            dtime += dstate[i] * at.x[p] * at.b[n];
            ddecay += dstate[i] * before[i];
            dstate[i] *= decay;
          }
          double& to = args.dx[(row * fwd.heads + head) * fwd.head_dim + p];
          to = args.accumulate_dx ? to + dx : dx;
        }
        const double dlog = ddecay * decay;
        dtime = (dtime + dlog * fwd.a[head]) * time.slope;
        da += dlog * time.dt;
        dbias += dtime;
        double& to = args.ddt[row * fwd.heads + head];
        to = args.accumulate_ddt ? to + dtime : dtime;
      }
      args.part_da[seq * fwd.heads + head] = da;
      if (args.part_dskip) args.part_dskip[seq * fwd.heads + head] = dskip;
      if (args.part_dbias) args.part_dbias[seq * fwd.heads + head] = dbias;
    }
}

}  // namespace mg::ref
