// Selective scan, causal convolution and linear recurrence, element by element.
#include <cmath>

#include "kernels/scan_tiles.h"
#include "ref/ref.h"

namespace mg::ref {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double silu_slope(double x) { return sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))); }
void put(double& to, double x, bool accumulate) { to = accumulate ? to + x : x; }

double raw_delta(const ScanArgs<double>& args, int64_t t, int64_t d) {
  return args.delta[t * args.channels + d] + (args.delta_bias ? args.delta_bias[d] : 0.0);
}
double delta(const ScanArgs<double>& args, int64_t t, int64_t d) {
  const double raw = raw_delta(args, t, d);
  return args.softplus ? std::fmax(raw, 0.0) + std::log1p(std::exp(-std::fabs(raw))) : raw;
}

// Row t of channel d: h (N) is advanced; gives y before the gate.
double step(const ScanArgs<double>& args, int64_t t, int64_t d, const double* before, double* h) {
  const double step = delta(args, t, d), u = args.u[t * args.channels + d];
  double y = args.skip ? args.skip[d] * u : 0.0;
  for (int64_t n = 0; n < args.states; ++n) {
    h[n] = std::exp(step * args.a[d * args.states + n]) * before[n] + step * args.b[t * args.states + n] * u;
    y += h[n] * args.c[t * args.states + n];
  }
  return y;
}

}  // namespace

void selective_scan(const ScanArgs<double>& args, const Share& share) {
  double* h = static_cast<double*>(share.scratch);
  const int64_t states = args.states, channels = args.channels;
  for (int64_t seq = 0; seq < args.seqs; ++seq) {
    const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
    if (first == last) continue;
    for (int64_t d = 0; d < channels; ++d) {
      double* state = args.state ? args.state + seq * states * channels + d : nullptr;
      for (int64_t n = 0; n < states; ++n) h[n] = state ? state[n * channels] : 0.0;
      for (int64_t t = first; t < last; ++t) {
        if (args.saved && (t - first) % kScanStride == 0) {
          const int64_t row = first / kScanStride + seq + (t - first) / kScanStride;
          for (int64_t n = 0; n < states; ++n) args.saved[(row * states + n) * channels + d] = h[n];
        }
        const double y = step(args, t, d, h, h), z = args.z ? args.z[t * channels + d] : 0.0;
        args.y[t * channels + d] = args.z ? y * z * sigmoid(z) : y;
      }
      for (int64_t n = 0; n < states && state; ++n) state[n * channels] = h[n];
    }
  }
}

// Each channel forward again, every state kept, and back.
void selective_scan_backward(const ScanBackwardArgs<double>& args, const Share& share) {
  const ScanArgs<double>& fwd = args.fwd;
  const int64_t states = fwd.states, channels = fwd.channels, square = fwd.tokens * states;
  double *h = static_cast<double*>(share.scratch), *g = h + (fwd.tokens + 1) * states, *da = g + states, *y = da + states;
  for (int64_t i = 0; i < scan_blocks(channels) * square; ++i) args.part_db[i] = args.part_dc[i] = 0.0;
  for (int64_t d = 0; d < channels; ++d) {
    double dskip = 0.0, dbias = 0.0;
    double *db = args.part_db + d / kScanBlock * square, *dc = args.part_dc + d / kScanBlock * square;
    for (int64_t n = 0; n < states; ++n) da[n] = 0.0;
    for (int64_t seq = 0; seq < fwd.seqs; ++seq) {
      const int64_t first = fwd.q_start[seq], last = fwd.q_start[seq + 1];
      for (int64_t n = 0; n < states; ++n) h[first * states + n] = g[n] = 0.0;
      for (int64_t t = first; t < last; ++t) y[t] = step(fwd, t, d, h + t * states, h + (t + 1) * states);
      for (int64_t t = last - 1; t >= first; --t) {
        const int64_t at = t * channels + d;
        const double z = fwd.z ? fwd.z[at] : 0.0, dy = args.dy[at] * (fwd.z ? z * sigmoid(z) : 1.0), u = fwd.u[at];
        const double step = delta(fwd, t, d);
        if (args.dz) put(args.dz[at], args.dy[at] * y[t] * silu_slope(z), args.accumulate_dz);
        double ddu = 0.0, ddelta = 0.0;
        for (int64_t n = 0; n < states; ++n) {
          const double a = fwd.a[d * states + n], decay = std::exp(step * a), before = h[t * states + n];
          g[n] += dy * fwd.c[t * states + n];
          dc[t * states + n] += dy * h[(t + 1) * states + n];
          db[t * states + n] += g[n] * step * u;
          ddu += g[n] * fwd.b[t * states + n];
          ddelta += g[n] * before * decay * a;
          da[n] += g[n] * before * decay * step;
          g[n] *= decay;
        }
        ddelta += ddu * u;
        if (fwd.softplus) ddelta *= sigmoid(raw_delta(fwd, t, d));
        if (args.du) put(args.du[at], ddu * step + (fwd.skip ? fwd.skip[d] * dy : 0.0), args.accumulate_du);
        if (args.ddelta) put(args.ddelta[at], ddelta, args.accumulate_ddelta);
        dskip += dy * u;
        dbias += ddelta;
      }
    }
    for (int64_t n = 0; n < states && args.da; ++n) put(args.da[d * states + n], da[n], args.accumulate_da);
    if (args.dskip) put(args.dskip[d], dskip, args.accumulate_dskip);
    if (args.ddelta_bias) put(args.ddelta_bias[d], dbias, args.accumulate_ddelta_bias);
  }
}

namespace {

double tap(const ConvArgs<double>& args, const double* before, int64_t first, int64_t row, int64_t c) {
  if (row >= first) return args.x[row * args.channels + c];
  return before ? before[(row - first + args.taps - 1) * args.channels + c] : 0.0;
}
double convolved(const ConvArgs<double>& args, const double* before, int64_t first, int64_t t, int64_t c) {
  double sum = args.bias ? args.bias[c] : 0.0;
  for (int64_t k = 0; k < args.taps; ++k)
    sum += args.weight[c * args.taps + k] * tap(args, before, first, t - args.taps + 1 + k, c);
  return sum;
}

}  // namespace

void causal_conv1d(const ConvArgs<double>& args, const Share&) {
  const int64_t kept = args.taps - 1, channels = args.channels;
  for (int64_t seq = 0; seq < args.seqs; ++seq) {
    const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
    double* state = args.state ? args.state + seq * kept * channels : nullptr;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = first; t < last; ++t) {
        const double z = convolved(args, state, first, t, c);
        args.y[t * channels + c] = args.act == Act::silu ? z * sigmoid(z) : z;
      }
      for (int64_t j = 0; j < kept && state && last > first; ++j)
        state[j * channels + c] = tap(args, state, first, last - kept + j, c);
    }
  }
}

void causal_conv1d_backward(const ConvBackwardArgs<double>& args, const Share& share) {
  const ConvArgs<double>& fwd = args.fwd;
  double *dz = static_cast<double*>(share.scratch), *dweight = dz + fwd.tokens;
  for (int64_t c = 0; c < fwd.channels; ++c) {
    double dbias = 0.0;
    for (int64_t k = 0; k < fwd.taps; ++k) dweight[k] = 0.0;
    for (int64_t seq = 0; seq < fwd.seqs; ++seq) {
      const int64_t first = fwd.q_start[seq], last = fwd.q_start[seq + 1];
      for (int64_t t = first; t < last; ++t) {
        const double z = convolved(fwd, nullptr, first, t, c);
        dz[t] = args.dy[t * fwd.channels + c] * (fwd.act == Act::silu ? silu_slope(z) : 1.0);
        dbias += dz[t];
        for (int64_t k = 0; k < fwd.taps; ++k) dweight[k] += dz[t] * tap(fwd, nullptr, first, t - fwd.taps + 1 + k, c);
      }
      for (int64_t t = first; t < last && args.dx; ++t) {
        double dx = 0.0;
        for (int64_t k = 0; k < fwd.taps && t + fwd.taps - 1 - k >= first; ++k)
          if (t + fwd.taps - 1 - k < last) dx += fwd.weight[c * fwd.taps + k] * dz[t + fwd.taps - 1 - k];
        put(args.dx[t * fwd.channels + c], dx, args.accumulate_dx);
      }
    }
    for (int64_t k = 0; k < fwd.taps && args.dweight; ++k)
      put(args.dweight[c * fwd.taps + k], dweight[k], args.accumulate_dweight);
    if (args.dbias) put(args.dbias[c], dbias, args.accumulate_dbias);
  }
}

void linear_recurrence(const RecurrenceArgs<double>& args, const Share&) {
  for (int64_t seq = 0; seq < args.seqs; ++seq) {
    const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
    for (int64_t c = 0; c < args.channels && last > first; ++c) {
      double h = args.state ? args.state[seq * args.channels + c] : 0.0;
      for (int64_t t = first; t < last; ++t) {
        const int64_t at = t * args.channels + c;
        args.h[at] = h = args.a[at] * h + args.x[at];
      }
      if (args.state) args.state[seq * args.channels + c] = h;
    }
  }
}

void linear_recurrence_backward(const RecurrenceBackwardArgs<double>& args, const Share&) {
  const RecurrenceArgs<double>& fwd = args.fwd;
  for (int64_t seq = 0; seq < fwd.seqs; ++seq) {
    const int64_t first = fwd.q_start[seq];
    for (int64_t c = 0; c < fwd.channels; ++c) {
      double g = 0.0;
      for (int64_t t = fwd.q_start[seq + 1] - 1; t >= first; --t) {
        const int64_t at = t * fwd.channels + c;
        g += args.dh[at];
        if (args.dx) put(args.dx[at], g, args.accumulate_dx);
        if (args.da) put(args.da[at], t > first ? g * fwd.h[at - fwd.channels] : 0.0, args.accumulate_da);
        g *= fwd.a[at];
      }
    }
  }
}

namespace {

double softplus(double x) { return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

}  // namespace

void rg_lru(const RgLruArgs<double>& args, const Share&) {
  for (int64_t seq = 0; seq < args.seqs; ++seq) {
    for (int64_t c = 0; c < args.channels && args.q_start[seq + 1] > args.q_start[seq]; ++c) {
      double h = args.state ? args.state[seq * args.channels + c] : 0.0;
      for (int64_t t = args.q_start[seq]; t < args.q_start[seq + 1]; ++t) {
        const int64_t at = t * args.channels + c;
        const double log_a = -8.0 * sigmoid(args.recurrent[at]) * softplus(args.param[c]);
        const double x = sigmoid(args.input[at]) * args.x[at];
        args.h[at] = h = args.positions[t] == 0 ? x : std::exp(log_a) * h + std::sqrt(-std::expm1(2.0 * log_a)) * x;
      }
      if (args.state) args.state[seq * args.channels + c] = h;
    }
  }
}

void rg_lru_backward(const RgLruBackwardArgs<double>& args, const Share&) {
  const RgLruArgs<double>& fwd = args.fwd;
  for (int64_t c = 0; c < fwd.channels; ++c) {
    const double rate = -8.0 * softplus(fwd.param[c]);
    double dparam = 0.0;
    for (int64_t seq = 0; seq < fwd.seqs; ++seq) {
      double g = 0.0;
      for (int64_t t = fwd.q_start[seq + 1] - 1; t >= fwd.q_start[seq]; --t) {
        const int64_t at = t * fwd.channels + c;
        const bool begins = fwd.positions[t] == 0;
        const double input = sigmoid(fwd.input[at]), recurrent = sigmoid(fwd.recurrent[at]), x = fwd.x[at];
        const double a = begins ? 0.0 : std::exp(rate * recurrent);
        const double scale = begins ? 1.0 : std::sqrt(-std::expm1(2.0 * rate * recurrent));
        g += args.dh[at];
        if (args.dx) put(args.dx[at], g * scale * input, args.accumulate_dx);
        if (args.dinput) put(args.dinput[at], g * scale * x * input * (1.0 - input), args.accumulate_dinput);
        const double before = t > fwd.q_start[seq] ? fwd.h[at - fwd.channels] : 0.0;
        const double dlog = begins ? 0.0 : g * a * (before - a * input * x / std::fmax(scale, 0.5 / kRgLruSlope));
        if (args.drecurrent) put(args.drecurrent[at], dlog * rate * recurrent * (1.0 - recurrent), args.accumulate_drecurrent);
        dparam += dlog * recurrent;
        g *= a;
      }
    }
    if (args.dparam) put(args.dparam[c], -8.0 * sigmoid(fwd.param[c]) * dparam, args.accumulate_dparam);
  }
}

}  // namespace mg::ref
