#include <cmath>

#include "ref/ref.h"

namespace mg::ref {

void embedding(const EmbeddingArgs<double>& args, const Share&) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t i = 0; i < args.width; ++i) {
      double& y = args.y[t * args.width + i];
      y = args.table[args.ids[t] * args.width + i] + (args.accumulate ? y : 0.0);
    }
  }
}

void embedding_backward(const EmbeddingBackwardArgs<double>& args, const Share&) {
  if (!args.accumulate)
    for (int64_t i = 0; i < args.vocab * args.width; ++i) args.dtable[i] = 0.0;
  for (int64_t t = 0; t < args.tokens; ++t)
    for (int64_t i = 0; i < args.width; ++i) args.dtable[args.ids[t] * args.width + i] += args.dy[t * args.width + i];
}

void rope(const RopeArgs<double>& args, const Share&) {
  const auto put = [&](double& to, double value) { to = args.accumulate ? to + value : value; };
  for (int64_t t = 0; t < args.tokens; ++t) {
    const int64_t angle = args.positions[t] * args.half;
    for (int64_t h = 0; h < args.heads; ++h) {
      const double* x = args.x + (t * args.heads + h) * args.head_dim;
      double* y = args.y + (t * args.heads + h) * args.head_dim;
      for (int64_t i = 0; i < args.half; ++i) {
        const int64_t first = args.interleaved ? 2 * i : i, second = args.interleaved ? 2 * i + 1 : i + args.half;
        const double a = x[first], b = x[second];
        const double c = args.cos[angle + i], s = args.inverse ? -args.sin[angle + i] : args.sin[angle + i];
        put(y[first], a * c - b * s);
        put(y[second], b * c + a * s);
      }
      for (int64_t i = 2 * args.half; i < args.head_dim; ++i) put(y[i], x[i]);
    }
  }
}

void cross_entropy(const CrossEntropyArgs<double>& args, const Share&) {
  const double scale = args.inv_count ? args.inv_count[0] : 1.0;
  for (int64_t row = 0; row < args.rows; ++row) {
    const double* x = args.logits + row * args.vocab;
    const int32_t target = args.targets[row];
    double top = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < args.vocab; ++i) top = std::fmax(top, x[i]);
    for (int64_t i = 0; i < args.vocab; ++i) sum += std::exp(x[i] - top);
    const double lse = std::log(sum) + top, flat = args.label_smoothing / (double)args.vocab;
    const auto wanted = [&](int64_t i) { return (i == target ? 1.0 - args.label_smoothing : 0.0) + flat; };
    double loss = args.z_loss > 0.0 ? args.z_loss * lse * lse : 0.0;
    for (int64_t i = 0; i < args.vocab; ++i)
      if (wanted(i) > 0.0) loss += wanted(i) * (lse - x[i]);
    args.losses[row] = target < 0 ? 0.0 : loss;
    if (!args.dlogits) continue;
    const double weight = args.z_loss > 0.0 ? 1.0 + 2.0 * args.z_loss * lse : 1.0;
    for (int64_t i = 0; i < args.vocab; ++i) {
      const double probability = std::exp(x[i] - top) / sum;
      args.dlogits[row * args.vocab + i] = target < 0 ? 0.0 : (probability * weight - wanted(i)) * scale;
    }
  }
}

void count_targets(const CountArgs<double>& args, const Share&) {
  int64_t count = 0;
  for (int64_t i = 0; i < args.n; ++i) count += args.targets[i] >= 0;
  args.out[0] = 1.0 / (double)(count > 1 ? count : 1);
}

}  // namespace mg::ref
