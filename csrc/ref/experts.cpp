#include <cmath>
#include <vector>

#include "ref/ref.h"

namespace mg::ref {

namespace {
std::vector<double> softmax_of(const double* x, int64_t n) {
  std::vector<double> p((size_t)n);
  double top = -INFINITY, sum = 0.0;
  for (int64_t i = 0; i < n; ++i) top = std::fmax(top, x[i]);
  for (int64_t i = 0; i < n; ++i) sum += p[(size_t)i] = std::exp(x[i] - top);
  for (double& each : p) each /= sum;
  return p;
}
double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// The weights of a token's experts before the scale, and the gradient of the logits from that of the weights.
struct Row {
  std::vector<double> weights, scores;
  double divisor = 1.0;
};
Row row_of(const RouteWeightsArgs<double>& args, int64_t t) {
  const double* x = args.logits + t * args.experts;
  const int32_t* ids = args.ids + t * args.chosen;
  std::vector<double> chosen;
  for (int64_t j = 0; j < args.chosen; ++j) chosen.push_back(x[ids[j]]);
  Row row;
  if (args.score == Score::softmax && args.renormalize) {
    row.weights = row.scores = softmax_of(chosen.data(), args.chosen);
  } else if (args.score == Score::softmax) {
    const std::vector<double> all = softmax_of(x, args.experts);
    for (int64_t j = 0; j < args.chosen; ++j) row.weights.push_back(all[(size_t)ids[j]]);
    row.scores = all;
  } else {
    double sum = args.eps;
    for (double each : chosen) row.scores.push_back(sigmoid(each)), sum += sigmoid(each);
    row.divisor = args.renormalize ? sum : 1.0;
    for (double each : row.scores) row.weights.push_back(each / row.divisor);
  }
  return row;
}
}  // namespace

void route(const RouteArgs<double>& args, const Share&) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    const double* x = args.logits + t * args.experts;
    std::vector<double> key(x, x + args.experts);
    if (args.score == Score::sigmoid)
      for (double& each : key) each = sigmoid(each);
    else if (args.bias) key = softmax_of(x, args.experts);
    std::vector<bool> taken((size_t)args.experts, false);
    for (int64_t e = 0; e < args.experts; ++e) {
      if (args.bias) key[(size_t)e] += args.bias[e];
      if (std::isnan(key[(size_t)e])) key[(size_t)e] = INFINITY;
    }
    for (int64_t j = 0; j < args.chosen; ++j) {
      int64_t best = -1;
      for (int64_t e = 0; e < args.experts; ++e)
        if (!taken[(size_t)e] && (best < 0 || key[(size_t)e] > key[(size_t)best])) best = e;
      taken[(size_t)best] = true;
      args.ids[t * args.chosen + j] = (int32_t)best;
    }
  }
}

void route_weights(const RouteWeightsArgs<double>& args, const Share&) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    const Row row = row_of(args, t);
    for (int64_t j = 0; j < args.chosen; ++j) args.y[t * args.chosen + j] = args.scale * row.weights[(size_t)j];
  }
}

void route_weights_backward(const RouteWeightsArgs<double>& args, const Share&) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    const Row row = row_of(args, t);
    double* dx = args.dx + t * args.experts;
    const int32_t* ids = args.ids + t * args.chosen;
    std::vector<double> g((size_t)args.chosen), gradient((size_t)args.experts, 0.0);
    double inner = 0.0;
    for (int64_t j = 0; j < args.chosen; ++j) {
      g[(size_t)j] = args.scale * args.dy[t * args.chosen + j];
      inner += g[(size_t)j] * row.weights[(size_t)j];
    }
    if (args.score == Score::softmax && !args.renormalize) {
      for (int64_t e = 0; e < args.experts; ++e) gradient[(size_t)e] = -row.scores[(size_t)e] * inner;
      for (int64_t j = 0; j < args.chosen; ++j) gradient[(size_t)ids[j]] += row.weights[(size_t)j] * g[(size_t)j];
    } else {
      for (int64_t j = 0; j < args.chosen; ++j) {
        const double s = row.scores[(size_t)j], less = args.renormalize ? inner : 0.0;
        const double slope = args.score == Score::softmax ? s : s * (1.0 - s) / row.divisor;
        gradient[(size_t)ids[j]] = (g[(size_t)j] - less) * slope;
      }
    }
    for (int64_t e = 0; e < args.experts; ++e) dx[e] = (args.accumulate ? dx[e] : 0.0) + gradient[(size_t)e];
  }
}

void sort_experts(const SortExpertsArgs<double>& args, const Share&) {
  int32_t next = 0;
  for (int64_t e = 0; e < args.experts; ++e) {
    args.offsets[e] = next;
    for (int64_t i = 0; i < args.n; ++i) {
      if (args.ids[i] != e) continue;
      args.order[next] = (int32_t)i;
      args.place[i] = next++;
    }
    if (args.load) args.load[e] = next - args.offsets[e];
  }
  args.offsets[args.experts] = next;
}

void gather_rows(const GatherArgs<double>& args, const Share&) {
  for (int64_t r = 0; r < args.rows; ++r) {
    const int64_t from = args.order[r];
    for (int64_t i = 0; i < args.width; ++i) {
      double& y = args.y[r * args.width + i];
      const double value = (args.weights ? args.weights[from] : 1.0) * args.x[from / args.chosen * args.width + i];
      y = (args.accumulate ? y : 0.0) + value;
    }
  }
}

void combine_rows(const CombineArgs<double>& args, const Share&) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t i = 0; i < args.width; ++i) {
      double sum = 0.0;
      for (int64_t j = t * args.chosen; j < (t + 1) * args.chosen; ++j)
        sum += (args.weights ? args.weights[j] : 1.0) * args.x[args.place[j] * args.width + i];
      double& y = args.y[t * args.width + i];
      y = (args.accumulate ? y : 0.0) + sum + (args.residual ? args.residual[t * args.width + i] : 0.0);
    }
  }
}

void combine_dot(const CombineArgs<double>& args, const Share&) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t j = t * args.chosen; j < (t + 1) * args.chosen; ++j) {
      double sum = args.accumulate ? args.dweights[j] : 0.0;
      for (int64_t i = 0; i < args.width; ++i) sum += args.dy[t * args.width + i] * args.x[args.place[j] * args.width + i];
      args.dweights[j] = sum;
    }
  }
}

void grouped_linear(const GroupedArgs<double>& args, const Share&) {
  for (int64_t e = 0; e < args.experts; ++e) {
    const double* b = args.b + e * args.n * args.k;
    for (int64_t r = args.offsets[e]; r < args.offsets[e + 1]; ++r) {
      for (int64_t j = 0; j < args.n; ++j) {
        double sum = args.accumulate ? args.c[r * args.n + j] : 0.0;
        for (int64_t i = 0; i < args.k; ++i)
          sum += args.a[r * args.k + i] * (args.trans_b ? b[j * args.k + i] : b[i * args.n + j]);
        args.c[r * args.n + j] = sum + (args.bias ? args.bias[e * args.n + j] : 0.0);
      }
    }
  }
}

void grouped_weight(const GroupedWeightArgs<double>& args, const Share&) {
  for (int64_t e = 0; e < args.experts; ++e) {
    for (int64_t i = 0; i < args.m; ++i) {
      for (int64_t j = 0; j < args.n; ++j) {
        double& c = args.c[(e * args.m + i) * args.n + j];
        double sum = args.accumulate ? c : 0.0;
        for (int64_t r = args.offsets[e]; r < args.offsets[e + 1]; ++r) sum += args.a[r * args.m + i] * args.b[r * args.n + j];
        c = sum;
      }
    }
  }
}

void grouped_sum(const GroupedWeightArgs<double>& args, const Share&) {
  for (int64_t e = 0; e < args.experts; ++e) {
    for (int64_t i = 0; i < args.m; ++i) {
      double sum = args.accumulate ? args.c[e * args.m + i] : 0.0;
      for (int64_t r = args.offsets[e]; r < args.offsets[e + 1]; ++r) sum += args.a[r * args.m + i];
      args.c[e * args.m + i] = sum;
    }
  }
}

}  // namespace mg::ref
