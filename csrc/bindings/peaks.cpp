// The machine's limits, for benches: fused multiply-adds, bf16 products, memory.
#include "bindings/common.h"

namespace mg::bindings {
namespace {

template <class T> void peak(const char* op, const Array& y) {
  PeakArgs<T> args{out<Wide<T>>(&y, y.size, op, "y"), y.size};
  MG_RUN(peak, T, args, to(y));
}

void read(const Array& x, const Array& partial) {
  by_wide_dtype(x, "read", [&](auto t) {
    using T = decltype(t);
    ReadArgs<T> args{in<T>(&x, x.size, "read", "x"),
                     out<double>(&partial, (x.size + kReadGrain - 1) / kReadGrain, "read", "partial"), x.size};
    MG_RUN(read, T, args, &x, to(partial));
  });
}

}  // namespace

void register_peaks(py::module_& m) {
  m.attr("PEAK_GRAIN") = kPeakGrain;
  m.attr("READ_GRAIN") = kReadGrain;
  m.def("peak_fma", [](const Array& y) { peak<float>("peak_fma", y); }, py::arg("y"),
        "PEAK_GRAIN float32 operations for each element of y, in chains of fma; y becomes 1.");
  m.def("peak_bf16", [](const Array& y) { peak<bf16>("peak_bf16", y); }, py::arg("y"),
        "The same with the instruction that multiplies bfloat16, or with fma where there is none; y is float32.");
  m.def("read", &read, py::arg("x"), py::arg("partial"), "partial[i] = sum of READ_GRAIN elements of x.");
}

}  // namespace mg::bindings
