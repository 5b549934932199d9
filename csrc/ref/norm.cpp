#include <cmath>

#include "ref/ref.h"

namespace mg::ref {

void norm(const NormArgs<double>& args, const Share&) {
  const int64_t cols = args.cols;
  for (int64_t row = 0; row < args.rows; ++row) {
    const double* x = args.x + row * cols;
    double mean = 0.0, squares = 0.0;
    if (args.center) {
      for (int64_t i = 0; i < cols; ++i) mean += x[i];
      mean /= (double)cols;
      args.mean[row] = mean;
    }
    for (int64_t i = 0; i < cols; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const double rstd = 1.0 / std::sqrt(squares / (double)cols + args.eps);
    args.rstd[row] = rstd;
    for (int64_t i = 0; i < cols; ++i) {
      double y = (x[i] - mean) * rstd;
      if (args.weight) y *= args.weight[i];
      if (args.bias) y += args.bias[i];
      args.y[row * cols + i] = y;
    }
  }
}

void norm_backward(const NormBackwardArgs<double>& args, const Share&) {
  const int64_t cols = args.cols;
  for (int64_t row = 0; row < args.rows; ++row) {
    const double *x = args.x + row * cols, *dy = args.dy + row * cols;
    double* dx = args.dx + row * cols;
    const double mean = args.center ? args.mean[row] : 0.0, rstd = args.rstd[row];
    double average = 0.0, along = 0.0;
    for (int64_t i = 0; i < cols; ++i) {
      const double g = dy[i] * (args.weight ? args.weight[i] : 1.0);
      average += g;
      along += g * (x[i] - mean) * rstd;
    }
    average = args.center ? average / (double)cols : 0.0;
    along /= (double)cols;
    for (int64_t i = 0; i < cols; ++i) {
      const double g = dy[i] * (args.weight ? args.weight[i] : 1.0);
      const double r = rstd * (g - average - (x[i] - mean) * rstd * along);
      if (args.part_dweight) args.part_dweight[i] = (row ? args.part_dweight[i] : 0.0) + dy[i] * (x[i] - mean) * rstd;
      if (args.part_dbias) args.part_dbias[i] = (row ? args.part_dbias[i] : 0.0) + dy[i];
      dx[i] = args.accumulate_dx ? dx[i] + r : r;
    }
  }
}

void norm_backward_weight(const NormBackwardArgs<double>& args, const Share&) {
  for (int64_t i = 0; i < args.cols; ++i) {
    double weight = 0.0, bias = 0.0;
    for (int64_t row = 0; row < args.rows; ++row) {
      const double dy = args.dy[row * args.cols + i], mean = args.center ? args.mean[row] : 0.0;
      weight += dy * (args.x[row * args.cols + i] - mean) * args.rstd[row];
      bias += dy;
    }
    if (args.dweight) args.dweight[i] = args.accumulate_dweight ? args.dweight[i] + weight : weight;
    if (args.dbias) args.dbias[i] = args.accumulate_dbias ? args.dbias[i] + bias : bias;
  }
}

void softmax(const SoftmaxArgs<double>& args, const Share&) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const double* x = args.x + row * args.cols;
    double* y = args.y + row * args.cols;
    double top = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < args.cols; ++i) top = std::fmax(top, args.scale * x[i]);
    for (int64_t i = 0; i < args.cols; ++i) sum += y[i] = std::exp(args.scale * x[i] - top);
    for (int64_t i = 0; i < args.cols; ++i) y[i] /= sum;
  }
}

void softmax_backward(const SoftmaxArgs<double>& args, const Share&) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const double *y = args.x + row * args.cols, *dy = args.dy + row * args.cols;
    double *dx = args.y + row * args.cols, dot = 0.0;
    for (int64_t i = 0; i < args.cols; ++i) dot += dy[i] * y[i];
    for (int64_t i = 0; i < args.cols; ++i) {
      const double r = args.scale * y[i] * (dy[i] - dot);
      dx[i] = args.accumulate ? dx[i] + r : r;
    }
  }
}

}  // namespace mg::ref
