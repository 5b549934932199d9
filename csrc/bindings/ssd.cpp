// Bindings of the state-space duality.
#include "bindings/common.h"

namespace mg::bindings {
namespace {

template <class T>
SsdArgs<T> ssd_args(const Array& x, const Array& dt, const Array& a, const Array& b, const Array& c, const Array* y,
                    const Array& q_start, int64_t heads, int64_t groups, int64_t state_dim, const Array* skip,
                    const Array* dt_bias, bool softplus, double dt_min, double dt_max, const Array* state,
                    const Array* chunks) {
  const char* op = "ssd";
  if (heads < 1 || groups < 1 || heads % groups || state_dim < 1 || q_start.size < 1)
    throw shape_error("ssd: heads must be a multiple of groups, the state's width at least 1");
  SsdArgs<T> args{};
  args.heads = heads, args.groups = groups, args.state_dim = state_dim;
  args.tokens = dt.size / heads, args.seqs = q_start.size - 1;
  args.head_dim = args.tokens ? x.size / (args.tokens * heads) : 1;
  if (args.head_dim < 1) throw shape_error("ssd: `x` has less than one number for each head");
  const int64_t rows = checked_mul(args.tokens, heads), size = checked_mul(checked_mul(heads, args.head_dim), state_dim);
  const int64_t inputs = checked_mul(checked_mul(args.tokens, groups), state_dim);
  args.x = in<T>(&x, checked_mul(rows, args.head_dim), op, "x");
  args.dt = in<T>(&dt, rows, op, "dt");
  args.a = in<Wide<T>>(&a, heads, op, "a");
  args.b = in<T>(&b, inputs, op, "b"), args.c = in<T>(&c, inputs, op, "c");
  args.skip = in_opt<Wide<T>>(skip, heads, op, "skip"), args.dt_bias = in_opt<Wide<T>>(dt_bias, heads, op, "dt_bias");
  args.y = out_opt<T>(y, rows * args.head_dim, op, "y");
  args.state = out_opt<Wide<T>>(state, checked_mul(args.seqs, size), op, "state");
  args.chunks = out_opt<Wide<T>>(chunks, checked_mul(state_chunks(args.tokens, args.seqs), size), op, "chunks");
  args.q_start = in<int32_t>(&q_start, args.seqs + 1, op, "q_start");
  args.dt_min = dt_min, args.dt_max = dt_max, args.softplus = softplus;
  check_starts(q_start, args.tokens, op);
  return args;
}

void ssd(const Array& x, const Array& dt, const Array& a, const Array& b, const Array& c, const Array& y,
         const Array& q_start, int64_t heads, int64_t groups, int64_t state_dim, const Array* skip, const Array* dt_bias,
         bool softplus, double dt_min, double dt_max, const Array* state, const Array* chunks) {
  by_dtype(x, "ssd", [&](auto t) {
    using T = decltype(t);
    const SsdArgs<T> args = ssd_args<T>(x, dt, a, b, c, &y, q_start, heads, groups, state_dim, skip, dt_bias, softplus,
                                        dt_min, dt_max, state, chunks);
    MG_RUN(ssd, T, args, &x, &dt, &a, &b, &c, to(y), &q_start, skip, dt_bias, to(state), to(chunks));
  });
}

void ssd_backward(const Array& x, const Array& dt, const Array& a, const Array& b, const Array& c, const Array& dy,
                  const Array& chunks, const Array& dx, const Array& ddt, const Array& part_db, const Array& part_dc,
                  const Array& part_da, const Array& q_start, int64_t heads, int64_t groups, int64_t state_dim,
                  const Array* skip, const Array* dt_bias, bool softplus, double dt_min, double dt_max,
                  const Array* part_dskip, const Array* part_dbias, bool accumulate_dx, bool accumulate_ddt) {
  by_dtype(x, "ssd_backward", [&](auto t) {
    using T = decltype(t);
    const char* op = "ssd_backward";
    SsdBackwardArgs<T> args{};
    args.fwd = ssd_args<T>(x, dt, a, b, c, nullptr, q_start, heads, groups, state_dim, skip, dt_bias, softplus, dt_min,
                           dt_max, nullptr, &chunks);
    const int64_t rows = args.fwd.tokens * heads, sums = checked_mul(args.fwd.seqs, heads);
    const int64_t parts = checked_mul(ssd_blocks(heads, groups), args.fwd.tokens * groups * state_dim);
    args.dy = in<T>(&dy, rows * args.fwd.head_dim, op, "dy");
    args.dx = out<T>(&dx, rows * args.fwd.head_dim, op, "dx"), args.ddt = out<T>(&ddt, rows, op, "ddt");
    args.part_db = out<Wide<T>>(&part_db, parts, op, "part_db"), args.part_dc = out<Wide<T>>(&part_dc, parts, op, "part_dc");
    args.part_da = out<Wide<T>>(&part_da, sums, op, "part_da");
    args.part_dskip = out_opt<Wide<T>>(part_dskip, sums, op, "part_dskip");
    args.part_dbias = out_opt<Wide<T>>(part_dbias, sums, op, "part_dbias");
    args.accumulate_dx = accumulate_dx, args.accumulate_ddt = accumulate_ddt;
    MG_RUN(ssd_backward, T, args, &x, &dt, &a, &b, &c, &dy, &chunks, to(dx), to(ddt), to(part_db), to(part_dc),
           to(part_da), &q_start, skip, dt_bias, to(part_dskip), to(part_dbias));
  });
}

}  // namespace

void register_ssd(py::module_& m) {
  define<&ssd>(m, "ssd", py::arg("x"), py::arg("dt"), py::arg("a"), py::arg("b"), py::arg("c"), py::arg("y"),
        py::arg("q_start"), py::arg("heads"), py::arg("groups"), py::arg("state_dim"), py::arg("skip"),
        py::arg("dt_bias"), py::arg("softplus"), py::arg("dt_min"), py::arg("dt_max"),
        py::arg("state") = nullptr, py::arg("chunks") = nullptr);
  define<&ssd_backward>(m, "ssd_backward", py::arg("x"), py::arg("dt"), py::arg("a"), py::arg("b"), py::arg("c"),
        py::arg("dy"), py::arg("chunks"), py::arg("dx"), py::arg("ddt"), py::arg("part_db"), py::arg("part_dc"),
        py::arg("part_da"), py::arg("q_start"), py::arg("heads"), py::arg("groups"), py::arg("state_dim"),
        py::arg("skip"), py::arg("dt_bias"), py::arg("softplus"), py::arg("dt_min"),
        py::arg("dt_max"), py::arg("part_dskip") = nullptr, py::arg("part_dbias") = nullptr,
        py::arg("accumulate_dx") = false, py::arg("accumulate_ddt") = false);
}

}  // namespace mg::bindings
