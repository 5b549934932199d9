// Matrix products and element-wise kernels.
#include "bindings/common.h"

namespace mg::bindings {
namespace {

// Elements spanned by a strided walk, so that the last one can be checked against the array.
int64_t span(const Sizes& shape, const Sizes& stride) {
  int64_t last = 1;
  for (int32_t i = 0; i < shape.count; ++i) {
    if (shape[i] == 0) return 0;
    if (stride[i] < 0) throw shape_error("strides must not be negative");
    last = checked_add(last, checked_mul(shape[i] - 1, stride[i]));
  }
  return last;
}

int64_t product(const Sizes& shape) {
  int64_t n = 1;
  for (int32_t i = 0; i < shape.count; ++i) n = checked_mul(n, shape[i]);
  return n;
}

void gemm(const Array& a, const Array& b, const Array& c, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b,
          const Array* bias, const Array* residual, const Array* factor, const Array* slope, int act, bool accumulate,
          int64_t batch, int64_t stride_a, int64_t stride_b, int64_t stride_c) {
  by_dtype(a, "matmul", [&](auto t) {
    using T = decltype(t);
    const char* op = "matmul";
    if (m < 0 || n < 0 || k < 0 || batch < 0) throw shape_error("matmul: negative size");
    auto extent = [&](int64_t stride, int64_t size) {
      return batch == 0 ? 0 : checked_add(checked_mul(batch - 1, stride), size);
    };
    const int64_t mk = checked_mul(m, k), kn = checked_mul(k, n), mn = checked_mul(m, n);
    if (batch > 1 && stride_c < mn) throw usage_error("matmul: products of a batch would share memory in `out`");
    GemmArgs<T> args{};
    args.a = in<T>(&a, extent(stride_a, mk), op, "a");
    args.b = in<T>(&b, extent(stride_b, kn), op, "b");
    if (kNarrow<T> && c.dtype == dtype_of<Wide<T>>::value) args.wide_c = out<Wide<T>>(&c, extent(stride_c, mn), op, "out");
    else args.c = out<T>(&c, extent(stride_c, mn), op, "out");
    args.bias = in_opt<T>(bias, n, op, "bias");
    args.residual = in_opt<T>(residual, extent(stride_c, mn), op, "residual");
    args.factor = in_opt<T>(factor, extent(stride_c, mn), op, "factor");
    args.slope = out_opt<T>(slope, extent(stride_c, mn), op, "slope");
    args.m = m, args.n = n, args.k = k;
    args.lda = trans_a ? m : k, args.ldb = trans_b ? k : n, args.ldc = n;
    args.batch = batch, args.stride_a = stride_a, args.stride_b = stride_b, args.stride_c = stride_c;
    args.trans_a = trans_a, args.trans_b = trans_b, args.accumulate = accumulate;
    args.act = choice(act, Act::silu, op, "act");
    MG_RUN(gemm, T, args, &a, &b, to(c), bias, each(residual), each(factor), to(slope));
  });
}

void unary(const Array& x, const Array& y, int op) {
  by_dtype(x, "unary", [&](auto t) {
    using T = decltype(t);
    UnaryArgs<T> args{in<T>(&x, y.size, "unary", "x"), out<T>(&y, x.size, "unary", "y"), x.size, choice(op, Unary::cos, "unary", "op")};
    MG_RUN(unary, T, args, each(x), to(y));
  });
}

// One operand of a broadcast: its own strides, and 0 along axes of size 1 and along those it lacks.
void broadcast_strides(const Array& from, const Array& to, int64_t* stride, const char* name) {
  const int32_t missing = to.rank - from.rank;
  int64_t own = 1;
  for (int32_t axis = to.rank - 1; axis >= 0; --axis) {
    const int64_t size = axis < missing ? 1 : from.shape[axis - missing];
    if (missing < 0 || (size != 1 && size != to.shape[axis]))
      throw shape_error(std::string("binary: `") + name + "` of shape " + shape_text(from.shape, from.rank) +
                        " does not broadcast to " + shape_text(to.shape, to.rank));
    stride[axis] = size == 1 ? 0 : own;
    own *= size;
  }
}

void binary(const Array& a, const Array& b, const Array& y, int op) {
  by_dtype(a, "binary", [&](auto t) {
    using T = decltype(t);
    if (y.rank > kMaxDims) throw shape_error("binary: at most " + std::to_string(kMaxDims) + " axes");
    BinaryArgs<T> args{};
    args.a = in<T>(&a, 0, "binary", "a");
    args.b = in<T>(&b, 0, "binary", "b");
    args.y = out<T>(&y, 0, "binary", "y");
    broadcast_strides(a, y, args.stride_a, "a");
    broadcast_strides(b, y, args.stride_b, "b");
    for (int32_t axis = 0; axis < y.rank; ++axis) args.shape[axis] = y.shape[axis];
    args.dims = y.rank;
    args.op = choice(op, Binary::equal, "binary", "op");
    MG_RUN(binary, T, args, each(a), each(b), to(y));
  });
}

// Whether two places of a walk may be one element: an axis steps no further than those of shorter steps reach.
bool overlaps(const Sizes& shape, const Sizes& stride) {
  for (int32_t i = 0; i < shape.count; ++i) {
    int64_t reach = 0;
    for (int32_t j = 0; j < shape.count; ++j)
      if (stride[j] < stride[i] || (stride[j] == stride[i] && j < i)) reach += (shape[j] - 1) * stride[j];
    if (shape[i] > 1 && stride[i] <= reach) return true;
  }
  return false;
}

// `x` is walked with strides from element `offset`; `y` is contiguous.
void copy(const Array& x, const Array& y, const Sizes& shape, const Sizes& stride, int64_t offset, bool to_x,
          bool accumulate) {
  by_dtype(x, "copy", [&](auto t) {
    using T = decltype(t);
    if (stride.count != shape.count || offset < 0) throw shape_error("copy: one stride for each axis, offset >= 0");
    CopyArgs<T> args{};
    const int64_t walked = span(shape, stride);
    if (to_x && !x.writable) throw usage_error("copy: the destination is read-only");
    if (to_x && walked && overlaps(shape, stride)) throw usage_error("copy: elements of the destination would share memory");
    args.x = const_cast<T*>(in<T>(&x, walked ? checked_add(offset, walked) : 0, "copy", "x")) + offset;
    args.y = const_cast<T*>(in<T>(&y, product(shape), "copy", "y"));
    for (int32_t axis = 0; axis < shape.count; ++axis) args.shape[axis] = shape[axis], args.stride[axis] = stride[axis];
    args.dims = shape.count;
    args.to_x = to_x, args.accumulate = accumulate;
    if (to_x) MG_RUN(copy, T, args, to(x), &y);
    else MG_RUN(copy, T, args, &x, to(y));
  });
}

void reduce(const Array& x, const Array& y, int64_t outer, int64_t axis, int64_t inner, int op, bool accumulate) {
  by_dtype(x, "reduce", [&](auto t) {
    using T = decltype(t);
    ReduceArgs<T> args{};
    args.x = in<T>(&x, checked_mul(checked_mul(outer, axis), inner), "reduce", "x");
    const int64_t size = checked_mul(outer, inner);
    if (kNarrow<T> && y.dtype == dtype_of<Wide<T>>::value) args.wide_y = out<Wide<T>>(&y, size, "reduce", "y");
    else args.y = out<T>(&y, size, "reduce", "y");
    args.outer = outer, args.axis = axis, args.inner = inner;
    args.op = choice(op, Reduce::max, "reduce", "op"), args.accumulate = accumulate;
    MG_RUN(reduce, T, args, &x, to(y));
  });
}

void fill(const Array& y, double value) {
  by_dtype(y, "fill", [&](auto t) {
    using T = decltype(t);
    FillArgs<T> args{out<T>(&y, y.size, "fill", "y"), y.size, value};
    MG_RUN(fill, T, args, to(y));
  });
}

void axpy(const Array& x, const Array& y, double alpha, double beta, const Array* alpha_at) {
  by_dtype(x, "axpy", [&](auto t) {
    using T = decltype(t);
    AxpyArgs<T> args{in<T>(&x, y.size, "axpy", "x"), out<T>(&y, x.size, "axpy", "y"),
                     in_opt<Wide<T>>(alpha_at, 1, "axpy", "alpha_at"), x.size, alpha, beta};
    MG_RUN(axpy, T, args, each(x), to(y), alpha_at);
  });
}

void cast(const Array& x, const Array& y, bool accumulate) {
  const bool to_narrow = y.dtype == DType::bf16;
  const Array &narrow = to_narrow ? y : x, &wide = to_narrow ? x : y;
  if (!y.writable) throw usage_error("cast: `y` is read-only");
  CastArgs<bf16> args{pointer<bf16>(&narrow, y.size, "cast", to_narrow ? "y" : "x", true),
                      pointer<float>(&wide, y.size, "cast", to_narrow ? "x" : "y", true), y.size, to_narrow, accumulate};
  if (x.size != y.size) throw shape_error("cast: `x` and `y` must have the same number of elements");
  MG_RUN(cast, bf16, args, &x, to(y));
}

}  // namespace

void register_math(py::module_& m) {
  define<&gemm>(m, "gemm", py::arg("a"), py::arg("b"), py::arg("c"), py::arg("m"), py::arg("n"), py::arg("k"),
        py::arg("trans_a") = false, py::arg("trans_b") = false, py::arg("bias") = nullptr,
        py::arg("residual") = nullptr, py::arg("factor") = nullptr, py::arg("slope") = nullptr, py::arg("act") = 0, py::arg("accumulate") = false,
        py::arg("batch") = 1, py::arg("stride_a") = 0, py::arg("stride_b") = 0, py::arg("stride_c") = 0);
  define<&unary>(m, "unary", py::arg("x"), py::arg("y"), py::arg("op"));
  define<&binary>(m, "binary", py::arg("a"), py::arg("b"), py::arg("y"), py::arg("op"),
        "y = f(a, b), each broadcast to y's shape.");
  define<&copy>(m, "copy", py::arg("x"), py::arg("y"), py::arg("shape"), py::arg("stride"), py::arg("offset") = 0,
        py::arg("to_x") = false, py::arg("accumulate") = false);
  define<&reduce>(m, "reduce", py::arg("x"), py::arg("y"), py::arg("outer"), py::arg("axis"), py::arg("inner"),
        py::arg("op"), py::arg("accumulate") = false);
  define<&fill>(m, "fill", py::arg("y"), py::arg("value"));
  define<&axpy>(m, "axpy", py::arg("x"), py::arg("y"), py::arg("alpha") = 1.0, py::arg("beta") = 0.0,
        py::arg("alpha_at") = nullptr, "y = alpha * alpha_at[0] * x + beta * y");
  define<&cast>(m, "cast", py::arg("x"), py::arg("y"), py::arg("accumulate") = false,
        "y (+)= x, between float32 and bfloat16, rounded to nearest even.");
}

}  // namespace mg::bindings
