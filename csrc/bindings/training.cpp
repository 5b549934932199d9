// Kernels of the optimizer step: gradient norm, clipping, AdamW, SGD.
#include "bindings/common.h"

namespace mg::bindings {
namespace {

void sum_squares(const Array& x, const Array& partial) {
  by_wide_dtype(x, "sum_squares", [&](auto t) {
    using T = decltype(t);
    SumSquaresArgs<T> args{in<T>(&x, x.size, "sum_squares", "x"),
                           out<double>(&partial, (x.size + kNormChunk - 1) / kNormChunk, "sum_squares", "partial"),
                           x.size};
    MG_RUN(sum_squares, T, args, &x, to(partial));
  });
}

void clip(const Array& partial, const Array& control, double max_norm, const Array* loss) {
  by_wide_dtype(control, "clip", [&](auto t) {
    using T = decltype(t);
    ClipArgs<T> args{in<double>(&partial, partial.size, "clip", "partial"), in_opt<T>(loss, 1, "clip", "loss"),
                     out<T>(&control, 3, "clip", "control"), partial.size, max_norm};
    MG_RUN(clip, T, args, &partial, loss, to(control));
  });
}

void adamw(const Array& param, const Array& grad, const Array& m, const Array& v, const Array& hyper,
           const Array& step, double beta1, double beta2, double eps, double weight_decay, double lr_scale,
           const Array* control, const Array* rounded) {
  by_wide_dtype(param, "adamw", [&](auto t) {
    using T = decltype(t);
    const int64_t n = param.size;
    AdamWArgs<T> args{out<T>(&param, n, "adamw", "param"), out<T>(&m, n, "adamw", "m"), out<T>(&v, n, "adamw", "v"),
                      in<T>(&grad, n, "adamw", "grad"), in<T>(&hyper, 1, "adamw", "hyper"),
                      in_opt<T>(control, 3, "adamw", "control"), in<int64_t>(&step, 1, "adamw", "step"),
                      n, beta1, beta2, eps, weight_decay, lr_scale, out_opt<bf16>(rounded, n, "adamw", "rounded")};
    MG_RUN(adamw, T, args, to(param), &grad, to(m), to(v), &hyper, control, &step, to(rounded));
  });
}

void sgd(const Array& param, const Array& grad, const Array& hyper, const Array& step, double momentum,
         double weight_decay, double lr_scale, bool nesterov, const Array* buffer, const Array* control,
         const Array* rounded) {
  by_wide_dtype(param, "sgd", [&](auto t) {
    using T = decltype(t);
    const int64_t n = param.size;
    SgdArgs<T> args{out<T>(&param, n, "sgd", "param"), pointer<T>(buffer, n, "sgd", "buffer", momentum != 0),
                    in<T>(&grad, n, "sgd", "grad"), in<T>(&hyper, 1, "sgd", "hyper"),
                    in_opt<T>(control, 3, "sgd", "control"), in<int64_t>(&step, 1, "sgd", "step"),
                    n, momentum, weight_decay, lr_scale, nesterov, out_opt<bf16>(rounded, n, "sgd", "rounded")};
    MG_RUN(sgd, T, args, to(param), &grad, &hyper, &step, to(buffer), control, to(rounded));
  });
}

}  // namespace

void register_training(py::module_& m) {
  m.attr("NORM_CHUNK") = kNormChunk;
  define<&sum_squares>(m, "sum_squares", py::arg("x"), py::arg("partial"));
  define<&clip>(m, "clip", py::arg("partial"), py::arg("control"), py::arg("max_norm"), py::arg("loss") = nullptr);
  define<&adamw>(m, "adamw", py::arg("param"), py::arg("grad"), py::arg("m"), py::arg("v"), py::arg("hyper"),
        py::arg("step"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
        py::arg("lr_scale") = 1.0, py::arg("control") = nullptr, py::arg("rounded") = nullptr);
  define<&sgd>(m, "sgd", py::arg("param"), py::arg("grad"), py::arg("hyper"), py::arg("step"), py::arg("momentum"),
        py::arg("weight_decay"), py::arg("lr_scale") = 1.0, py::arg("nesterov") = false, py::arg("buffer") = nullptr,
        py::arg("control") = nullptr, py::arg("rounded") = nullptr);
}

}  // namespace mg::bindings
