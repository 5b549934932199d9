// Kernels of experts: routing, the rows of tokens in the order of experts, products over groups of rows.
#include <algorithm>

#include "bindings/common.h"
#include "kernels/grouped_quantized.h"

namespace mg::bindings {
namespace {

void route(const Array& logits, const Array& ids, int64_t experts, int64_t chosen, int score, const Array* bias) {
  by_dtype(logits, "route", [&](auto t) {
    using T = decltype(t);
    if (experts < 1 || chosen < 1 || chosen > experts) throw shape_error("route: needs 1 <= chosen <= experts");
    const int64_t tokens = logits.size / experts;
    RouteArgs<T> args{in<T>(&logits, tokens * experts, "route", "logits"), in_opt<Wide<T>>(bias, experts, "route", "bias"),
                      out<int32_t>(&ids, checked_mul(tokens, chosen), "route", "ids"), tokens, experts, chosen, choice(score, Score::sigmoid, "route", "score")};
    MG_RUN(route, T, args, &logits, bias, to(ids));
  });
}

// y of the forward, or dy and dx of the backward.
void route_weights(const Array& logits, const Array& ids, int64_t experts, int64_t chosen, int score, bool renormalize,
                   double scale, double eps, const Array* y, const Array* dy, const Array* dx, bool accumulate) {
  by_dtype(logits, "route_weights", [&](auto t) {
    using T = decltype(t);
    const char* op = "route_weights";
    if (experts < 1 || chosen < 1 || chosen > experts) throw shape_error("route_weights: needs 1 <= chosen <= experts");
    const int64_t tokens = logits.size / experts, weights = checked_mul(tokens, chosen);
    check_ids(ids, 0, experts, op, "ids");
    RouteWeightsArgs<T> args{};
    args.logits = in<T>(&logits, tokens * experts, op, "logits");
    args.ids = in<int32_t>(&ids, weights, op, "ids");
    args.tokens = tokens, args.experts = experts, args.chosen = chosen;
    args.scale = finite(scale, op, "scale"), args.eps = not_negative(eps, op, "eps");
    args.score = choice(score, Score::sigmoid, op, "score"), args.renormalize = renormalize;
    args.accumulate = accumulate;
    if (dx) {
      args.dy = in<T>(dy, weights, op, "dy");
      args.dx = out<T>(dx, tokens * experts, op, "dx");
      MG_RUN(route_weights_backward, T, args, &logits, &ids, dy, to(dx));
    } else {
      args.y = out<T>(y, weights, op, "y");
      MG_RUN(route_weights, T, args, &logits, &ids, to(y));
    }
  });
}

void sort_experts(const Array& ids, const Array& order, const Array& place, const Array& offsets, const Array& load) {
  by_wide_dtype(load, "sort_experts", [&](auto t) {
    using T = decltype(t);
    const char* op = "sort_experts";
    check_ids(ids, 0, load.size, op, "ids");
    SortExpertsArgs<T> args{ids.as<int32_t>(), out<int32_t>(&order, ids.size, op, "order"),
                            out<int32_t>(&place, ids.size, op, "place"), out<int32_t>(&offsets, load.size + 1, op, "offsets"),
                            out<T>(&load, load.size, op, "load"), ids.size, load.size};
    MG_RUN(sort_experts, T, args, &ids, to(order), to(place), to(offsets), to(load));
  });
}

void gather_rows(const Array& x, const Array& order, const Array& y, int64_t chosen, int64_t width, bool accumulate,
                 const Array* weights) {
  by_dtype(x, "gather_rows", [&](auto t) {
    using T = decltype(t);
    const char* op = "gather_rows";
    if (chosen < 1 || width < 0) throw shape_error("gather_rows: needs at least one row a token");
    const int64_t rows = order.size;
    check_ids(order, 0, width > 0 ? checked_mul(x.size / width, chosen) : rows, op, "order");
    GatherArgs<T> args{in<T>(&x, 0, op, "x"), order.as<int32_t>(), in_opt<T>(weights, rows, op, "weights"),
                       out<T>(&y, checked_mul(rows, width), op, "y"), rows, chosen, width, accumulate};
    MG_RUN(gather_rows, T, args, &x, &order, weights, to(y));
  });
}

void combine_rows(const Array& x, const Array& place, const Array& y, int64_t chosen, int64_t width, bool accumulate,
                  const Array* weights, const Array* residual) {
  by_dtype(x, "combine_rows", [&](auto t) {
    using T = decltype(t);
    const char* op = "combine_rows";
    if (chosen < 1 || width < 0) throw shape_error("combine_rows: needs at least one row a token");
    const int64_t tokens = place.size / chosen, size = checked_mul(tokens, width);
    check_ids(place, 0, width > 0 ? x.size / width : place.size, op, "place");
    CombineArgs<T> args{};
    args.x = in<T>(&x, 0, op, "x"), args.place = place.as<int32_t>();
    args.weights = in_opt<T>(weights, tokens * chosen, op, "weights");
    args.residual = in_opt<T>(residual, size, op, "residual");
    args.y = out<T>(&y, size, op, "y");
    args.tokens = tokens, args.chosen = chosen, args.width = width, args.accumulate = accumulate;
    MG_RUN(combine_rows, T, args, &x, &place, weights, each(residual), to(y));
  });
}

void combine_dot(const Array& x, const Array& place, const Array& dy, const Array& dweights, int64_t chosen, int64_t width,
                 bool accumulate) {
  by_dtype(x, "combine_dot", [&](auto t) {
    using T = decltype(t);
    const char* op = "combine_dot";
    if (chosen < 1 || width < 0) throw shape_error("combine_dot: needs at least one row a token");
    const int64_t tokens = place.size / chosen;
    check_ids(place, 0, width > 0 ? x.size / width : place.size, op, "place");
    CombineArgs<T> args{};
    args.x = in<T>(&x, 0, op, "x"), args.place = place.as<int32_t>();
    args.dy = in<T>(&dy, checked_mul(tokens, width), op, "dy");
    args.dweights = out<T>(&dweights, tokens * chosen, op, "dweights");
    args.tokens = tokens, args.chosen = chosen, args.width = width, args.accumulate = accumulate;
    MG_RUN(combine_dot, T, args, &x, &place, &dy, to(dweights));
  });
}

// offsets (E + 1) run from 0 to `rows` and never fall.
const int32_t* check_offsets(const Array& offsets, int64_t rows, const char* op) {
  check_starts(offsets, rows, op, "offsets", "expert");
  return offsets.as<int32_t>();
}

template <class T> void give_output(const Array& c, int64_t size, const char* op, T** narrow, Wide<T>** wide) {
  if (kNarrow<T> && c.dtype == dtype_of<Wide<T>>::value) *wide = out<Wide<T>>(&c, size, op, "out");
  else *narrow = out<T>(&c, size, op, "out");
}

void grouped_linear(const Array& a, const Array& b, const Array& c, const Array& offsets, int64_t n, int64_t k, bool trans_b,
                    bool accumulate, const Array* bias) {
  by_dtype(a, "grouped_linear", [&](auto t) {
    using T = decltype(t);
    const char* op = "grouped_linear";
    if (n < 0 || k < 0 || offsets.size < 1) throw shape_error("grouped_linear: negative size, or no offsets");
    const int64_t experts = offsets.size - 1, last = in<int32_t>(&offsets, 1, op, "offsets")[experts];
    const int64_t rows = n > 0 ? c.size / n : k > 0 ? a.size / k : last;
    GroupedArgs<T> args{};
    args.offsets = check_offsets(offsets, rows, op);
    args.a = in<T>(&a, checked_mul(rows, k), op, "a");
    args.b = in<T>(&b, checked_mul(experts, checked_mul(n, k)), op, "b");
    give_output<T>(c, checked_mul(rows, n), op, &args.c, &args.wide_c);
    args.bias = in_opt<T>(bias, checked_mul(experts, n), op, "bias");
    args.rows = rows, args.n = n, args.k = k, args.experts = experts, args.trans_b = trans_b, args.accumulate = accumulate;
    MG_RUN(grouped_linear, T, args, &a, &b, to(c), &offsets, bias);
  });
}

// c (E, M, N) (+)= a^T b of each group, or without b the sum of a's rows (E, M).
void grouped_weight(const Array& a, const Array* b, const Array& c, const Array& offsets, int64_t m, int64_t n,
                    bool accumulate) {
  by_dtype(a, "grouped_weight", [&](auto t) {
    using T = decltype(t);
    const char* op = "grouped_weight";
    if (m < 0 || n < 0 || offsets.size < 1) throw shape_error("grouped_weight: negative size, or no offsets");
    const int64_t experts = offsets.size - 1, rows = m > 0 ? a.size / m : 0;
    GroupedWeightArgs<T> args{};
    args.offsets = m > 0 ? check_offsets(offsets, rows, op) : in<int32_t>(&offsets, 1, op, "offsets");
    args.a = in<T>(&a, checked_mul(rows, m), op, "a");
    args.b = in_opt<T>(b, checked_mul(rows, n), op, "b");
    give_output<T>(c, checked_mul(experts, b ? checked_mul(m, n) : m), op, &args.c, &args.wide_c);
    args.rows = rows, args.m = m, args.n = n, args.experts = experts, args.accumulate = accumulate;
    if (b) MG_RUN(grouped_weight, T, args, &a, b, to(c), &offsets);
    else MG_RUN(grouped_sum, T, args, &a, to(c), &offsets);
  });
}

// Offsets (E + 1) of `rows` rows, and how far apart weights lie in `data`.
QExperts experts_of(const Array& offsets, const Array* data, int64_t rows, const char* op) {
  if (offsets.size < 2) throw shape_error(std::string(op) + ": no offsets");
  const int64_t experts = offsets.size - 1;
  return {check_offsets(offsets, rows, op), experts, data ? data->size / experts : 0};
}

void q_gather(const Array& codes, const Array& scales, const Array& starts, const Array& order, const Array& offsets,
              const Array& to_codes, const Array& to_scales, const Array& to_starts, int type, int64_t rows, int64_t sources,
              int64_t chosen, int64_t k, int64_t group) {
  const char* op = "q_gather";
  if (type < 0 || type >= kQTypes || group < 1 || k < 0 || chosen < 1) throw shape_error("q_gather: no such activations");
  const int64_t groups = q_groups(k, group), parts = q_starts((QType)type), numbers = checked_mul(rows, groups);
  const int64_t given = checked_mul(sources, groups);
  check_ids(order, 0, checked_mul(sources, chosen), op, "order");
  QGatherArgs args{};
  args.codes = reinterpret_cast<const int8_t*>(in<uint8_t>(&codes, checked_mul(given, group), op, "codes"));
  args.scales = in<float>(&scales, given, op, "scales"), args.starts = in<int32_t>(&starts, given * parts, op, "starts");
  args.order = in<int32_t>(&order, rows, op, "order");
  args.to_codes = reinterpret_cast<int8_t*>(out<uint8_t>(&to_codes, checked_mul(numbers, group), op, "to_codes"));
  args.to_scales = out<float>(&to_scales, numbers, op, "to_scales");
  args.to_starts = out<int32_t>(&to_starts, numbers * parts, op, "to_starts");
  args.experts = experts_of(offsets, nullptr, rows, op);
  args.rows = rows, args.sources = sources, args.chosen = chosen, args.groups = groups, args.group = group, args.type = (QType)type;
  MG_RUN_THIS("qgather", &qgather, plan_qgather(args), args, &codes, &scales, &starts, &order, &offsets, to(to_codes), to(to_scales),
              to(to_starts));
}

void grouped_q_rows(const Array& x, const Array& codes, const Array& scales, const Array& starts, const Array& data,
                    const Array& offsets, int type, int64_t n, int64_t k, int64_t group) {
  const char* op = "grouped_q_rows";
  const int64_t experts = std::max<int64_t>(offsets.size - 1, 1), rows = k > 0 ? x.size / k : 0;
  const QWeight w = weight_of(data, type, n, k, group, op, experts);
  const int64_t numbers = checked_mul(rows, q_groups(k, group));
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    GroupedQRowsArgs<T> args{};
    args.rows = {in<T>(&x, checked_mul(rows, k), op, "x"),
                 reinterpret_cast<int8_t*>(out<uint8_t>(&codes, checked_mul(numbers, group), op, "codes")),
                 out<float>(&scales, numbers, op, "scales"), out<int32_t>(&starts, numbers * q_starts(w.type), op, "starts"),
                 w.order, rows, k, group, w.type};
    args.experts = experts_of(offsets, &data, rows, op);
    args.kernel = kernels<T>().qrows;
    MG_RUN_THIS("grouped_qrows", &grouped_qrows<T>, plan_grouped_qrows(args), args, &x, to(codes), to(scales), to(starts), &data, &offsets);
  });
}

void grouped_q_gemm(const Array& codes, const Array& scales, const Array& starts, const Array& data, const Array& c,
                    const Array& offsets, int type, int64_t n, int64_t k, int64_t group, const Array* bias) {
  const char* op = "grouped_q_gemm";
  const int64_t experts = std::max<int64_t>(offsets.size - 1, 1), rows = n > 0 ? c.size / n : 0;
  const QWeight w = weight_of(data, type, n, k, group, op, experts);
  if (kQTraits[type].book == QBook::floats) throw usage_error(std::string(op) + ": " + kQTraits[type].name + " has no codes that are integers");
  by_dtype(c, op, [&](auto t) {
    using T = decltype(t);
    const int64_t numbers = checked_mul(rows, q_groups(k, group));
    GroupedQGemmArgs<T> args{};
    args.product.w = w, args.product.m = rows;
    args.product.codes = reinterpret_cast<const int8_t*>(in<uint8_t>(&codes, checked_mul(numbers, group), op, "codes"));
    args.product.scales = in<float>(&scales, numbers, op, "scales");
    args.product.starts = in<int32_t>(&starts, numbers * q_starts(w.type), op, "starts");
    args.product.c = out<T>(&c, checked_mul(rows, n), op, "out");
    args.product.bias = in_opt<T>(bias, checked_mul(experts, n), op, "bias");
    args.experts = experts_of(offsets, &data, rows, op);
    args.kernel = kernels<T>().qgemm;
    MG_RUN_THIS("grouped_qgemm", &grouped_qgemm<T>, plan_grouped_qgemm(args), args, &codes, &scales, &starts, &data, bias, &offsets, to(c));
  });
}

void grouped_q_matmul(const Array& x, const Array& data, const Array& y, const Array& offsets, int type, int64_t n, int64_t k,
                      int64_t group, const Array* bias, bool to_inputs, bool accumulate) {
  const char* op = "grouped_q_matmul";
  const int64_t experts = std::max<int64_t>(offsets.size - 1, 1), width = to_inputs ? n : k;
  const int64_t rows = width > 0 ? x.size / width : 0;
  const QWeight w = weight_of(data, type, n, k, group, op, experts);
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    GroupedQNumbersArgs<T> args{};
    args.w = w, args.a = in<T>(&x, checked_mul(rows, width), op, "x");
    give_output<T>(y, checked_mul(rows, to_inputs ? k : n), op, &args.c, &args.wide_c);
    if (kNarrow<T> && to_inputs && !args.wide_c) throw dtype_error("grouped_q_matmul: `out` must be float32, where sums wait");
    args.bias = to_inputs ? nullptr : in_opt<T>(bias, checked_mul(experts, n), op, "bias");
    args.experts = experts_of(offsets, &data, rows, op);
    args.rows = rows, args.to_inputs = to_inputs, args.accumulate = accumulate;
    args.numbers = kernels<T>().qdequantize, args.product = kernels<T>().gemm;
    MG_RUN_THIS("grouped_qnumbers", &grouped_qnumbers<T>, plan_grouped_qnumbers(args), args, &x, &data, bias, &offsets, to(y));
  });
}

}  // namespace

void register_experts(py::module_& m) {
  define<&route>(m, "route", py::arg("logits"), py::arg("ids"), py::arg("experts"), py::arg("chosen"), py::arg("score"),
        py::arg("bias") = nullptr);
  define<&route_weights>(m, "route_weights", py::arg("logits"), py::arg("ids"), py::arg("experts"), py::arg("chosen"),
        py::arg("score"), py::arg("renormalize"), py::arg("scale"), py::arg("eps"), py::arg("y") = nullptr,
        py::arg("dy") = nullptr, py::arg("dx") = nullptr, py::arg("accumulate") = false,
        "Weights y; where `dx` is given, the gradient of the logits from dy instead.");
  define<&sort_experts>(m, "sort_experts", py::arg("ids"), py::arg("order"), py::arg("place"), py::arg("offsets"),
        py::arg("load"));
  define<&gather_rows>(m, "gather_rows", py::arg("x"), py::arg("order"), py::arg("y"), py::arg("chosen"), py::arg("width"),
        py::arg("accumulate") = false, py::arg("weights") = nullptr);
  define<&combine_rows>(m, "combine_rows", py::arg("x"), py::arg("place"), py::arg("y"), py::arg("chosen"), py::arg("width"),
        py::arg("accumulate") = false, py::arg("weights") = nullptr, py::arg("residual") = nullptr);
  define<&combine_dot>(m, "combine_dot", py::arg("x"), py::arg("place"), py::arg("dy"), py::arg("dweights"),
        py::arg("chosen"), py::arg("width"), py::arg("accumulate") = false);
  define<&grouped_linear>(m, "grouped_linear", py::arg("a"), py::arg("b"), py::arg("c"), py::arg("offsets"), py::arg("n"),
        py::arg("k"), py::arg("trans_b") = false, py::arg("accumulate") = false, py::arg("bias") = nullptr);
  define<&grouped_weight>(m, "grouped_weight", py::arg("a"), py::arg("b"), py::arg("c"), py::arg("offsets"), py::arg("m"),
        py::arg("n"), py::arg("accumulate") = false, "A sum of rows where `b` is None.");
  define<&q_gather>(m, "q_gather", py::arg("codes"), py::arg("scales"), py::arg("starts"), py::arg("order"), py::arg("offsets"),
        py::arg("to_codes"), py::arg("to_scales"), py::arg("to_starts"), py::arg("type"), py::arg("rows"), py::arg("sources"),
        py::arg("chosen"), py::arg("k"), py::arg("group"),
        "Activations of q_rows, of `sources` rows, to the tiles of each expert's own rows.");
  define<&grouped_q_rows>(m, "grouped_q_rows", py::arg("x"), py::arg("codes"), py::arg("scales"), py::arg("starts"),
        py::arg("data"), py::arg("offsets"), py::arg("type"), py::arg("n"), py::arg("k"), py::arg("group"),
        "q_rows of each expert's rows, for products with its weight.");
  define<&grouped_q_gemm>(m, "grouped_q_gemm", py::arg("codes"), py::arg("scales"), py::arg("starts"), py::arg("data"),
        py::arg("c"), py::arg("offsets"), py::arg("type"), py::arg("n"), py::arg("k"), py::arg("group"), py::arg("bias") = nullptr,
        "q_gemm of each expert's rows with its weight.");
  define<&grouped_q_matmul>(m, "grouped_q_matmul", py::arg("x"), py::arg("data"), py::arg("y"), py::arg("offsets"),
        py::arg("type"), py::arg("n"), py::arg("k"), py::arg("group"), py::arg("bias") = nullptr, py::arg("to_inputs") = false,
        py::arg("accumulate") = false, "q_matmul of each expert's rows with its weight.");
}

}  // namespace mg::bindings
