#include <cmath>

#include "core/rng.h"
#include "ref/ref.h"

namespace mg::ref {

namespace {

constexpr double kSqrtHalf = 0.70710678118654752440, kInvSqrt2Pi = 0.39894228040143267794;
constexpr double kSqrt2OverPi = 0.79788456080286535588, kCubic = 0.044715;

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double apply(Unary op, double x) {
  switch (op) {
    case Unary::neg: return -x;
    case Unary::exp: return std::exp(x);
    case Unary::log: return std::log(x);
    case Unary::sqrt: return std::sqrt(x);
    case Unary::rsqrt: return 1.0 / std::sqrt(x);
    case Unary::tanh: return std::tanh(x);
    case Unary::erf: return std::erf(x);
    case Unary::sigmoid: return sigmoid(x);
    case Unary::square: return x * x;
    case Unary::reciprocal: return 1.0 / x;
    case Unary::sin: return std::sin(x);
    case Unary::cos: return std::cos(x);
  }
  return x;
}

void put(double& to, double value, bool accumulate) { to = accumulate ? to + value : value; }

}  // namespace

double act_value(Act act, double x) {
  switch (act) {
    case Act::none: return x;
    case Act::gelu: return 0.5 * x * std::erfc(-x * kSqrtHalf);
    case Act::gelu_tanh: return 0.5 * x * (1.0 + std::tanh(kSqrt2OverPi * (x + kCubic * x * x * x)));
    case Act::relu: return x <= 0.0 ? 0.0 : x;
    case Act::relu2: return x <= 0.0 ? 0.0 : x * x;
    case Act::silu: return x * sigmoid(x);
  }
  return x;
}

double act_slope(Act act, double x) {
  switch (act) {
    case Act::none: return 1.0;
    case Act::gelu: return 0.5 * std::erfc(-x * kSqrtHalf) + x * kInvSqrt2Pi * std::exp(-0.5 * x * x);
    case Act::gelu_tanh: {
      const double t = std::tanh(kSqrt2OverPi * (x + kCubic * x * x * x));
      return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * kSqrt2OverPi * (1.0 + 3.0 * kCubic * x * x);
    }
    case Act::relu: return x <= 0.0 ? 0.0 : 1.0;
    case Act::relu2: return x <= 0.0 ? 0.0 : 2.0 * x;
    case Act::silu: return sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
  }
  return 1.0;
}

void act(const ActArgs<double>& args, const Share&) {
  for (int64_t i = 0; i < args.n; ++i) put(args.y[i], act_value(args.act, args.x[i]), args.accumulate);
}

void act_backward(const ActArgs<double>& args, const Share&) {
  for (int64_t i = 0; i < args.n; ++i) put(args.y[i], args.dy[i] * act_slope(args.act, args.x[i]), args.accumulate);
}

void glu(const GluArgs<double>& args, const Share&) {
  for (int64_t i = 0; i < args.n; ++i) args.y[i] = act_value(args.act, args.gate[i]) * args.up[i];
}

void glu_backward(const GluArgs<double>& args, const Share&) {
  for (int64_t i = 0; i < args.n; ++i) {
    const double dy = args.dy[i], gate = args.gate[i];
    const double dgate = args.dgate ? dy * args.up[i] * act_slope(args.act, gate) : 0.0;
    if (args.dup) put(args.dup[i], dy * act_value(args.act, gate), args.accumulate_dup);
    if (args.dgate) put(args.dgate[i], dgate, args.accumulate_dgate);
  }
}

void dropout(const DropoutArgs<double>& args, const Share&) {
  const uint64_t high = dropout_high(args.stream, args.step[0]);
  for (int64_t i = 0; i < args.n; ++i) {
    const bool keep = dropout_keep(args.seed, high, i, dropout_threshold(args.p));
    put(args.y[i], keep ? args.x[i] / (1.0 - args.p) : 0.0, args.accumulate);
  }
}

void unary(const UnaryArgs<double>& args, const Share&) {
  for (int64_t i = 0; i < args.n; ++i) args.y[i] = apply(args.op, args.x[i]);
}

void fill(const FillArgs<double>& args, const Share&) {
  for (int64_t i = 0; i < args.n; ++i) args.y[i] = args.value;
}

void axpy(const AxpyArgs<double>& args, const Share&) {
  const double alpha = args.alpha * (args.alpha_at ? args.alpha_at[0] : 1.0);
  for (int64_t i = 0; i < args.n; ++i)
    args.y[i] = alpha * args.x[i] + (args.beta == 0.0 ? 0.0 : args.beta * args.y[i]);
}

}  // namespace mg::ref
