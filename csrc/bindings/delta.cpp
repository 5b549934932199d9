// Bindings of the gated delta rule.
#include "bindings/common.h"

namespace mg::bindings {
namespace {

struct DeltaShape {
  int64_t heads, key_heads, k_dim, v_dim;
};

template <class T>
DeltaArgs<T> delta_args(const Array& q, const Array& k, const Array& v, const Array& g, const Array& beta, const Array* o,
                        const Array& q_start, DeltaShape shape, double scale, bool normalize, const Array* state,
                        const Array* chunks) {
  const char* op = "gated_delta";
  if (shape.heads < 1 || shape.key_heads < 1 || shape.heads % shape.key_heads || shape.k_dim < 1 || shape.v_dim < 1 ||
      q_start.size < 1)
    throw shape_error("gated_delta: value heads must be a multiple of key heads, widths at least 1");
  DeltaArgs<T> args{};
  args.heads = shape.heads, args.key_heads = shape.key_heads, args.k_dim = shape.k_dim, args.v_dim = shape.v_dim;
  args.tokens = g.size / shape.heads, args.seqs = q_start.size - 1;
  const int64_t keys = checked_mul(checked_mul(args.tokens, shape.key_heads), shape.k_dim);
  const int64_t values = checked_mul(checked_mul(args.tokens, shape.heads), shape.v_dim);
  const int64_t size = checked_mul(checked_mul(shape.heads, shape.k_dim), shape.v_dim);
  args.q = in<T>(&q, keys, op, "q"), args.k = in<T>(&k, keys, op, "k"), args.v = in<T>(&v, values, op, "v");
  args.g = in<Wide<T>>(&g, args.tokens * shape.heads, op, "g");
  args.beta = in<Wide<T>>(&beta, args.tokens * shape.heads, op, "beta");
  args.o = out_opt<T>(o, values, op, "o");
  args.state = out_opt<Wide<T>>(state, checked_mul(args.seqs, size), op, "state");
  args.chunks = out_opt<Wide<T>>(chunks, checked_mul(state_chunks(args.tokens, args.seqs), size), op, "chunks");
  args.q_start = in<int32_t>(&q_start, args.seqs + 1, op, "q_start");
  args.scale = scale, args.normalize = normalize;
  check_starts(q_start, args.tokens, op);
  return args;
}

void gated_delta(const Array& q, const Array& k, const Array& v, const Array& g, const Array& beta, const Array& o,
                 const Array& q_start, int64_t heads, int64_t key_heads, int64_t k_dim, int64_t v_dim, double scale,
                 bool normalize, const Array* state, const Array* chunks) {
  by_dtype(q, "gated_delta", [&](auto t) {
    using T = decltype(t);
    const DeltaArgs<T> args = delta_args<T>(q, k, v, g, beta, &o, q_start, {heads, key_heads, k_dim, v_dim}, scale,
                                            normalize, state, chunks);
    MG_RUN(gated_delta, T, args, &q, &k, &v, &g, &beta, to(o), &q_start, to(state), to(chunks));
  });
}

void gated_delta_backward(const Array& q, const Array& k, const Array& v, const Array& g, const Array& beta,
                          const Array& d_o, const Array& chunks, const Array& dq, const Array& dk, const Array& dv,
                          const Array& dg, const Array& dbeta, const Array& q_start, int64_t heads, int64_t key_heads,
                          int64_t k_dim, int64_t v_dim, double scale, bool normalize, bool accumulate_dq,
                          bool accumulate_dk, bool accumulate_dv, bool accumulate_dg, bool accumulate_dbeta) {
  by_dtype(q, "gated_delta_backward", [&](auto t) {
    using T = decltype(t);
    const char* op = "gated_delta_backward";
    DeltaBackwardArgs<T> args{};
    args.fwd = delta_args<T>(q, k, v, g, beta, nullptr, q_start, {heads, key_heads, k_dim, v_dim}, scale, normalize,
                             nullptr, &chunks);
    const int64_t keys = args.fwd.tokens * key_heads * k_dim, times = args.fwd.tokens * heads;
    args.d_o = in<T>(&d_o, times * v_dim, op, "d_o");
    args.dq = out<T>(&dq, keys, op, "dq"), args.dk = out<T>(&dk, keys, op, "dk");
    args.dv = out<T>(&dv, times * v_dim, op, "dv");
    args.dg = out<Wide<T>>(&dg, times, op, "dg"), args.dbeta = out<Wide<T>>(&dbeta, times, op, "dbeta");
    args.accumulate_dq = accumulate_dq, args.accumulate_dk = accumulate_dk, args.accumulate_dv = accumulate_dv;
    args.accumulate_dg = accumulate_dg, args.accumulate_dbeta = accumulate_dbeta;
    MG_RUN(gated_delta_backward, T, args, &q, &k, &v, &g, &beta, &d_o, &chunks, to(dq), to(dk), to(dv), to(dg), to(dbeta), &q_start);
  });
}

}  // namespace

void register_delta(py::module_& m) {
  define<&gated_delta>(m, "gated_delta", py::arg("q"), py::arg("k"), py::arg("v"), py::arg("g"), py::arg("beta"),
        py::arg("o"), py::arg("q_start"), py::arg("heads"), py::arg("key_heads"), py::arg("k_dim"), py::arg("v_dim"),
        py::arg("scale"), py::arg("normalize") = false, py::arg("state") = nullptr, py::arg("chunks") = nullptr);
  define<&gated_delta_backward>(m, "gated_delta_backward", py::arg("q"), py::arg("k"), py::arg("v"), py::arg("g"),
        py::arg("beta"), py::arg("d_o"), py::arg("chunks"), py::arg("dq"), py::arg("dk"), py::arg("dv"), py::arg("dg"),
        py::arg("dbeta"), py::arg("q_start"), py::arg("heads"), py::arg("key_heads"), py::arg("k_dim"),
        py::arg("v_dim"), py::arg("scale"), py::arg("normalize") = false, py::arg("accumulate_dq") = false,
        py::arg("accumulate_dk") = false, py::arg("accumulate_dv") = false, py::arg("accumulate_dg") = false,
        py::arg("accumulate_dbeta") = false);
}

}  // namespace mg::bindings
