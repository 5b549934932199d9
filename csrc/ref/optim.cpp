#include <cmath>

#include "ref/ref.h"

namespace mg::ref {

void sum_squares(const SumSquaresArgs<double>& args, const Share&) {
  for (int64_t chunk = 0; chunk * kNormChunk < args.n; ++chunk) {
    args.partial[chunk] = 0.0;
    for (int64_t i = chunk * kNormChunk; i < args.n && i < (chunk + 1) * kNormChunk; ++i)
      args.partial[chunk] += args.x[i] * args.x[i];
  }
}

void clip(const ClipArgs<double>& args, const Share&) {
  double squares = 0.0;
  for (int64_t i = 0; i < args.chunks; ++i) squares += args.partial[i];
  const double norm = std::sqrt(squares);
  const bool finite = std::isfinite(norm) && (!args.loss || std::isfinite(args.loss[0]));
  args.control[0] = norm;
  args.control[1] = !finite ? 0.0 : args.max_norm > 0.0 ? std::fmin(1.0, args.max_norm / (norm + 1e-6)) : 1.0;
  args.control[2] = finite;
}

void adamw(const AdamWArgs<double>& args, const Share&) {
  if (args.control && args.control[2] == 0.0) return;
  const double lr = args.hyper[0] * args.lr_scale, step = (double)args.step[0];
  const double correction1 = 1.0 - std::pow(args.beta1, step), correction2 = 1.0 - std::pow(args.beta2, step);
  for (int64_t i = 0; i < args.n; ++i) {
    const double g = args.grad[i] * (args.control ? args.control[1] : 1.0);
    args.param[i] *= 1.0 - lr * args.weight_decay;
    args.m[i] += (1.0 - args.beta1) * (g - args.m[i]);
    args.v[i] = args.beta2 * args.v[i] + (1.0 - args.beta2) * g * g;
    args.param[i] -= lr / correction1 * (args.m[i] / (std::sqrt(args.v[i]) / std::sqrt(correction2) + args.eps));
    if (args.rounded) assign(args.rounded[i], (float)args.param[i]);
  }
}

void sgd(const SgdArgs<double>& args, const Share&) {
  if (args.control && args.control[2] == 0.0) return;
  const double lr = args.hyper[0] * args.lr_scale;
  for (int64_t i = 0; i < args.n; ++i) {
    double g = args.grad[i] * (args.control ? args.control[1] : 1.0) + args.weight_decay * args.param[i];
    if (args.buf) {
      args.buf[i] = args.step[0] <= 1 ? g : args.momentum * args.buf[i] + g;
      g = args.nesterov ? g + args.momentum * args.buf[i] : args.buf[i];
    }
    args.param[i] -= lr * g;
    if (args.rounded) assign(args.rounded[i], (float)args.param[i]);
  }
}

}  // namespace mg::ref
