// Bindings of RWKV-7's time mixing.
#include "bindings/common.h"

namespace mg::bindings {
namespace {

template <class T>
Rwkv7Args<T> rwkv7_args(const Array& r, const Array& w, const Array& k, const Array& v, const Array& a, const Array& b,
                        const Array* y, const Array& q_start, int64_t heads, int64_t k_dim, int64_t v_dim,
                        const Array* state, const Array* kept) {
  const char* op = "rwkv7";
  if (heads < 1 || k_dim < 1 || v_dim < 1 || q_start.size < 1) throw shape_error("rwkv7: heads and widths at least 1");
  Rwkv7Args<T> args{};
  args.heads = heads, args.k_dim = k_dim, args.v_dim = v_dim;
  args.tokens = r.size / checked_mul(heads, k_dim), args.seqs = q_start.size - 1;
  const int64_t keys = args.tokens * heads * k_dim, values = checked_mul(args.tokens, checked_mul(heads, v_dim));
  const int64_t size = checked_mul(checked_mul(heads, k_dim), v_dim);
  args.r = in<T>(&r, keys, op, "r"), args.w = in<Wide<T>>(&w, keys, op, "w"), args.k = in<T>(&k, keys, op, "k");
  args.a = in<T>(&a, keys, op, "a"), args.b = in<T>(&b, keys, op, "b"), args.v = in<T>(&v, values, op, "v");
  args.y = out_opt<T>(y, values, op, "y");
  args.state = out_opt<Wide<T>>(state, checked_mul(args.seqs, size), op, "state");
  args.kept = out_opt<Wide<T>>(kept, checked_mul(args.tokens / kRwkvStride + args.seqs, size), op, "kept");
  args.q_start = in<int32_t>(&q_start, args.seqs + 1, op, "q_start");
  check_starts(q_start, args.tokens, op);
  return args;
}

void rwkv7(const Array& r, const Array& w, const Array& k, const Array& v, const Array& a, const Array& b, const Array& y,
           const Array& q_start, int64_t heads, int64_t k_dim, int64_t v_dim, const Array* state, const Array* kept) {
  by_dtype(r, "rwkv7", [&](auto t) {
    using T = decltype(t);
    const Rwkv7Args<T> args = rwkv7_args<T>(r, w, k, v, a, b, &y, q_start, heads, k_dim, v_dim, state, kept);
    MG_RUN(rwkv7, T, args, &r, &w, &k, &v, &a, &b, to(y), &q_start, to(state), to(kept));
  });
}

void rwkv7_backward(const Array& r, const Array& w, const Array& k, const Array& v, const Array& a, const Array& b,
                    const Array& dy, const Array& kept, const Array& dr, const Array& dw, const Array& dk,
                    const Array& dv, const Array& da, const Array& db, const Array& q_start, int64_t heads,
                    int64_t k_dim, int64_t v_dim, bool accumulate_dr, bool accumulate_dw, bool accumulate_dk,
                    bool accumulate_dv, bool accumulate_da, bool accumulate_db) {
  by_dtype(r, "rwkv7_backward", [&](auto t) {
    using T = decltype(t);
    const char* op = "rwkv7_backward";
    Rwkv7BackwardArgs<T> args{};
    args.fwd = rwkv7_args<T>(r, w, k, v, a, b, nullptr, q_start, heads, k_dim, v_dim, nullptr, &kept);
    const int64_t keys = args.fwd.tokens * heads * k_dim, values = args.fwd.tokens * heads * v_dim;
    args.dy = in<T>(&dy, values, op, "dy");
    args.dr = out<T>(&dr, keys, op, "dr"), args.dw = out<Wide<T>>(&dw, keys, op, "dw");
    args.dk = out<T>(&dk, keys, op, "dk"), args.dv = out<T>(&dv, values, op, "dv");
    args.da = out<T>(&da, keys, op, "da"), args.db = out<T>(&db, keys, op, "db");
    args.accumulate_dr = accumulate_dr, args.accumulate_dw = accumulate_dw, args.accumulate_dk = accumulate_dk;
    args.accumulate_dv = accumulate_dv, args.accumulate_da = accumulate_da, args.accumulate_db = accumulate_db;
    MG_RUN(rwkv7_backward, T, args, &r, &w, &k, &v, &a, &b, &dy, &kept, to(dr), to(dw), to(dk), to(dv), to(da), to(db), &q_start);
  });
}

}  // namespace

void register_rwkv(py::module_& m) {
  define<&rwkv7>(m, "rwkv7", py::arg("r"), py::arg("w"), py::arg("k"), py::arg("v"), py::arg("a"), py::arg("b"),
        py::arg("y"), py::arg("q_start"), py::arg("heads"), py::arg("k_dim"), py::arg("v_dim"),
        py::arg("state") = nullptr, py::arg("kept") = nullptr);
  define<&rwkv7_backward>(m, "rwkv7_backward", py::arg("r"), py::arg("w"), py::arg("k"), py::arg("v"), py::arg("a"),
        py::arg("b"), py::arg("dy"), py::arg("kept"), py::arg("dr"), py::arg("dw"), py::arg("dk"), py::arg("dv"),
        py::arg("da"), py::arg("db"), py::arg("q_start"), py::arg("heads"), py::arg("k_dim"), py::arg("v_dim"),
        py::arg("accumulate_dr") = false, py::arg("accumulate_dw") = false, py::arg("accumulate_dk") = false,
        py::arg("accumulate_dv") = false, py::arg("accumulate_da") = false, py::arg("accumulate_db") = false);
}

}  // namespace mg::bindings
