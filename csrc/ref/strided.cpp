#include <cmath>

#include "ref/ref.h"

namespace mg::ref {

namespace {

double combine(Binary op, double a, double b) {
  switch (op) {
    case Binary::add: return a + b;
    case Binary::sub: return a - b;
    case Binary::mul: return a * b;
    case Binary::div: return a / b;
    case Binary::max: return std::isnan(a) || a > b ? a : b;
    case Binary::min: return std::isnan(a) || a < b ? a : b;
    case Binary::less: return a < b;
    case Binary::less_equal: return a <= b;
    case Binary::equal: return a == b;
  }
  return a;
}

int64_t count(const int64_t* shape, int dims) {
  int64_t n = 1;
  for (int axis = 0; axis < dims; ++axis) n *= shape[axis];
  return n;
}

// Where element `flat` of a row-major walk lies in an array of these strides.
int64_t position(int64_t flat, const int64_t* shape, const int64_t* stride, int dims) {
  int64_t at = 0;
  for (int axis = dims - 1; axis >= 0; --axis) {
    at += flat % shape[axis] * stride[axis];
    flat /= shape[axis];
  }
  return at;
}

}  // namespace

void binary(const BinaryArgs<double>& args, const Share&) {
  const int64_t n = count(args.shape, args.dims);
  for (int64_t i = 0; i < n; ++i) {
    const double a = args.a[position(i, args.shape, args.stride_a, args.dims)];
    const double b = args.b[position(i, args.shape, args.stride_b, args.dims)];
    args.y[i] = combine(args.op, a, b);
  }
}

void copy(const CopyArgs<double>& args, const Share&) {
  const int64_t n = count(args.shape, args.dims);
  for (int64_t i = 0; i < n; ++i) {
    double& x = args.x[position(i, args.shape, args.stride, args.dims)];
    double &to = args.to_x ? x : args.y[i], from = args.to_x ? args.y[i] : x;
    to = args.accumulate ? to + from : from;
  }
}

void reduce(const ReduceArgs<double>& args, const Share&) {
  for (int64_t outer = 0; outer < args.outer; ++outer) {
    for (int64_t inner = 0; inner < args.inner; ++inner) {
      double r = args.op == Reduce::sum ? 0.0 : -INFINITY;
      for (int64_t k = 0; k < args.axis; ++k) {
        const double x = args.x[(outer * args.axis + k) * args.inner + inner];
        r = args.op == Reduce::sum ? r + x : combine(Binary::max, r, x);
      }
      double& y = args.y[outer * args.inner + inner];
      y = args.accumulate ? y + r : r;
    }
  }
}

}  // namespace mg::ref
