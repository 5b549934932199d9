// Quantized weights: making them, reading them, and products with them.
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "bindings/common.h"
#include "kernels/rows.h"

namespace mg::bindings {
namespace {

constexpr int64_t kQMostK = 1 << 17;         // a row's sum of codes, at most 127 each, is exact in float
constexpr int64_t kQPieceNumbers = 1 << 18;  // of a weight that are numbers at a time: 1 MiB, which stays in L2

const QTraits& traits_of(int type, const char* op) {
  if (type < 0 || type >= kQTypes) throw usage_error(std::string(op) + ": no quantized type " + std::to_string(type));
  return kQTraits[type];
}
// Blocks and tables; the order of K follows them where `data` has room for it.
int64_t q_bytes(int type, int64_t n, int64_t k, int64_t group) {
  traits_of(type, "q_bytes");
  const int64_t blocks = checked_mul(checked_mul(q_panels(n), q_groups(k, group)), q_block_bytes((QType)type, group));
  return blocks + 4 * q_table_floats((QType)type, n, k, group);
}

}  // namespace

// The type is known, the group fits it, and the data hold all blocks and tables.
QWeight weight_of(const Array& data, int type, int64_t n, int64_t k, int64_t group, const char* op, int64_t experts) {
  const QTraits& traits = traits_of(type, op);
  if (n < 0 || k < 0 || k > kQMostK) throw shape_error(std::string(op) + ": a weight of " + std::to_string(n) + " x " + std::to_string(k));
  const int64_t right = traits.channel ? std::max<int64_t>(traits.step, q_channel_group(k)) : traits.group ? traits.group : group;
  if (group != right || group < 1 || group % traits.step || (!traits.channel && (group < kQLeastGroup || group > kQMostGroup)))
    throw shape_error(std::string(op) + ": groups of " + std::to_string(group) + " for " + traits.name);
  const int64_t bytes = q_bytes(type, n, k, group), tables = 4 * q_table_floats((QType)type, n, k, group);
  const uint8_t* blocks = in<uint8_t>(&data, checked_mul(experts, bytes), op, "data");
  const bool ordered = k > 0 && data.size == checked_mul(experts, bytes + 4 * k);
  if (experts > 1 && !ordered && data.size != experts * bytes)
    throw shape_error(std::string(op) + ": `data` of " + std::to_string(data.size) + " bytes for " + std::to_string(experts) + " experts");
  return {blocks, n, k, group, (QType)type, tables ? reinterpret_cast<const float*>(blocks + bytes - tables) : nullptr,
          ordered ? reinterpret_cast<const int32_t*>(blocks + bytes) : nullptr};
}

namespace {

uint8_t* writable_data(const Array& data, const char* op) {
  return out<uint8_t>(&data, 0, op, "data");
}

void check_rows(const QWeight& w, int64_t first, int64_t rows, const char* op) {
  if (first < 0 || rows < 0 || rows > w.n || first > w.n - rows) throw shape_error(std::string(op) + ": rows beyond the weight");
}
void check_panels(const QWeight& w, int64_t first, int64_t rows, const char* op) {
  check_rows(w, first, rows, op);
  if (first % kQCols || (rows % kQCols && first + rows != w.n))
    throw shape_error(std::string(op) + ": pieces must be whole panels of " + std::to_string(kQCols) + " rows");
}

void quantize(const Array& x, const Array& data, int type, int64_t n, int64_t k, int64_t group, int64_t first) {
  const char* op = "quantize";
  const QWeight w = weight_of(data, type, n, k, group, op);
  if (!kQTraits[type].direct) throw usage_error(std::string("quantize: no rounding to ") + kQTraits[type].name);
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    const int64_t rows = k > 0 ? x.size / k : 0;
    check_panels(w, first, rows, op);
    QuantizeArgs<T> args{in<T>(&x, checked_mul(rows, k), op, "x"), w, writable_data(data, op), rows, first};
    MG_RUN(quantize, T, args, &x, to(data));
  });
}

void q_pack(const Array& codes, const Array& data, int type, int64_t n, int64_t k, int64_t group, const Array* scales,
            const Array* leasts, const Array* bytes, int64_t first) {
  const char* op = "q_pack";
  const QWeight w = weight_of(data, type, n, k, group, op);
  const QTraits& traits = kQTraits[type];
  if (traits.part) throw usage_error(std::string("q_pack: ") + traits.name + " is made of blocks");
  const int64_t rows = k > 0 ? codes.size / k : 0, numbers = checked_mul(rows, q_groups(k, group));
  check_panels(w, first, rows, op);
  const bool small = traits.scale == QScale::exponent || traits.scale == QScale::nested;
  QPackArgs args{in<uint8_t>(&codes, checked_mul(rows, k), op, "codes"), nullptr, nullptr, nullptr, w, writable_data(data, op), rows, first};
  if (!small) args.scales = in<float>(scales, numbers, op, "scales");
  if (traits.least == QLeast::minimum) args.leasts = in<float>(leasts, numbers, op, "leasts");
  if (small || traits.least == QLeast::zero) args.bytes = in<uint8_t>(bytes, numbers, op, "bytes");
  MG_RUN_THIS("qpack", &qpack, plan_qpack(args), args, &codes, scales, leasts, bytes, to(data));
}

// A weight whose rows are whole blocks of GGUF's.
QWeight blocks_of(const Array& data, int type, int64_t n, int64_t k, int64_t group, const char* op) {
  const QWeight w = weight_of(data, type, n, k, group, op);
  if (!q_gguf_bytes(w.type) || (!kQTraits[type].group && group != 32) || k % group || w.order)
    throw shape_error(std::string(op) + ": GGUF has no such rows of " + kQTraits[type].name);
  return w;
}

Array q_blocks(const Array& blocks, const Array& data, int type, int64_t n, int64_t k, int64_t group, int64_t first) {
  const char* op = "q_blocks";
  const QWeight w = blocks_of(data, type, n, k, group, op);
  const int64_t row_bytes = checked_mul(q_groups(k, group), q_gguf_bytes(w.type));
  const int64_t rows = row_bytes > 0 ? blocks.size / row_bytes : 0;
  check_panels(w, first, rows, op);
  const int64_t shape[] = {q_panels(rows)};
  Array finite = make_array(DType::i32, shape, 1);
  QBlocksArgs args{in<uint8_t>(&blocks, checked_mul(rows, row_bytes), op, "blocks"), finite.as<int32_t>(), w,
                   writable_data(data, op), rows, first};
  MG_RUN_THIS("qblocks", &qblocks, plan_qblocks(args), args, &blocks, to(data), to(finite));
  return finite;
}

void q_unblocks(const Array& data, const Array& blocks, int type, int64_t n, int64_t k, int64_t group, int64_t first) {
  const char* op = "q_unblocks";
  const QWeight w = blocks_of(data, type, n, k, group, op);
  const int64_t row_bytes = checked_mul(q_groups(k, group), q_gguf_bytes(w.type));
  const int64_t rows = row_bytes > 0 ? blocks.size / row_bytes : 0;
  check_panels(w, first, rows, op);
  QUnblocksArgs args{w, out<uint8_t>(&blocks, checked_mul(rows, row_bytes), op, "blocks"), rows, first};
  MG_RUN_THIS("qunblocks", &qunblocks, plan_qunblocks(args), args, &data, to(blocks));
}

// Scales that are searched for; see QFitArgs. A group of x has as many numbers as `length`.
void q_fit(const Array& x, const Array& scale, const Array& steps, int64_t length, int low, int high, int sides, int rounds,
           const Array* weights, const Array* least, bool bounded, int book) {
  const char* op = "q_fit";
  if (length < 1 || length > kQMostK || low > high || high < 1 || sides < 1 || sides > 2 || rounds < 0 ||
      (book != (int)QBook::none && (book != (int)QBook::iq4 || least)))
    throw usage_error("q_fit: impossible settings");
  const int64_t groups = x.size / length, kinds = weights ? weights->size / length : 1;
  if (kinds < 1) throw shape_error("q_fit: no weights");
  QFitArgs<float> args{};
  args.x = in<float>(&x, checked_mul(groups, length), op, "x");
  args.weights = in_opt<float>(weights, checked_mul(kinds, length), op, "weights");
  args.steps = in<float>(&steps, steps.size, op, "steps");
  args.scale = out<float>(&scale, groups, op, "scale");
  args.least = out_opt<float>(least, groups, op, "least");
  args.groups = groups, args.length = length, args.kinds = kinds, args.count = steps.size;
  args.low = low, args.high = high, args.sides = sides, args.rounds = rounds, args.bounded = bounded;
  args.book = (QBook)book;
  MG_RUN(qfit, float, args, &x, to(scale), &steps, weights, to(least));
}

void q_dequantize(const Array& data, const Array& y, int type, int64_t n, int64_t k, int64_t group, const Array* ids,
                  int64_t first) {
  const char* op = "q_dequantize";
  const QWeight w = weight_of(data, type, n, k, group, op);
  by_dtype(y, op, [&](auto t) {
    using T = decltype(t);
    const int64_t rows = ids ? ids->size : k > 0 ? y.size / k : 0;
    if (ids) check_ids(*ids, 0, n, op, "ids");
    else check_rows(w, first, rows, op);
    QDequantizeArgs<T> args{w, ids ? ids->as<int32_t>() : nullptr, out<T>(&y, checked_mul(rows, k), op, "y"), rows, first};
    MG_RUN(qdequantize, T, args, &data, ids, to(y));
  });
}

void q_rows(const Array& x, const Array& codes, const Array& scales, const Array& starts, const Array& data, int type,
            int64_t m, int64_t n, int64_t k, int64_t group) {
  const char* op = "q_rows";
  const QWeight w = weight_of(data, type, n, k, group, op);
  if (m < 0) throw shape_error("q_rows: negative size");
  const int64_t numbers = checked_mul(m, q_groups(k, group));
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    QRowsArgs<T> args{in<T>(&x, checked_mul(m, k), op, "x"),
                      reinterpret_cast<int8_t*>(out<uint8_t>(&codes, checked_mul(numbers, group), op, "codes")),
                      out<float>(&scales, numbers, op, "scales"),
                      out<int32_t>(&starts, numbers * q_starts(w.type), op, "starts"),
                      w.order, m, k, group, w.type};
    if (w.order) MG_RUN(qrows, T, args, &x, to(codes), to(scales), to(starts), &data);
    else MG_RUN(qrows, T, args, &x, to(codes), to(scales), to(starts));
  });
}

void q_gemm(const Array& codes, const Array& scales, const Array& starts, const Array& data, const Array& c, int type,
            int64_t m, int64_t n, int64_t k, int64_t group, const Array* bias, const Array* residual, const Array* slope,
            int act) {
  const char* op = "q_gemm";
  const QWeight w = weight_of(data, type, n, k, group, op);
  if (m < 0) throw shape_error("q_gemm: negative size");
  if (kQTraits[type].book == QBook::floats) throw usage_error(std::string("q_gemm: ") + kQTraits[type].name + " has no codes that are integers");
  const Array& typed = bias ? *bias : residual ? *residual : slope ? *slope : c;  // c may be wider
  by_dtype(typed, op, [&](auto t) {
    using T = decltype(t);
    const int64_t numbers = checked_mul(m, q_groups(k, group)), mn = checked_mul(m, n);
    QGemmArgs<T> args{};
    args.w = w;
    args.codes = reinterpret_cast<const int8_t*>(in<uint8_t>(&codes, checked_mul(numbers, group), op, "codes"));
    args.scales = in<float>(&scales, numbers, op, "scales");
    args.starts = in<int32_t>(&starts, numbers * q_starts(w.type), op, "starts");
    if (kNarrow<T> && c.dtype == dtype_of<Wide<T>>::value) args.wide_c = out<Wide<T>>(&c, mn, op, "out");
    else args.c = out<T>(&c, mn, op, "out");
    args.bias = in_opt<T>(bias, n, op, "bias");
    args.residual = in_opt<T>(residual, mn, op, "residual");
    args.slope = out_opt<T>(slope, mn, op, "slope");
    args.m = m;
    args.act = choice(act, Act::silu, op, "act");
    MG_RUN(qgemm, T, args, &codes, &scales, &starts, &data, bias, each(residual), to(slope), to(c));
  });
}

// Y = residual + act(X W^T + bias) with W as numbers of X's type, made a few panels at a time; or, to_inputs, Y (+)= X W
// for X (m, n), which sums in Y over the pieces and so wants it wide.
void q_matmul(const Array& x, const Array& data, const Array& y, int type, int64_t m, int64_t n, int64_t k, int64_t group,
              const Array* bias, const Array* residual, const Array* slope, int act, bool to_inputs, bool accumulate) {
  const char* op = "q_matmul";
  const QWeight w = weight_of(data, type, n, k, group, op);
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    const int64_t piece = std::max<int64_t>(kQCols, kQPieceNumbers / std::max<int64_t>(k, 1) / kQCols * kQCols);
    const int64_t most = std::min(piece, std::max<int64_t>(n, 1)), shape[] = {most, k};
    const Array part = make_array(dtype_of<T>::value, shape, 2);
    const int64_t mn = checked_mul(m, n), mk = checked_mul(m, k), size = to_inputs ? mk : mn;
    const bool wide = kNarrow<T> && y.dtype == dtype_of<Wide<T>>::value;
    for (int64_t first = 0; first < std::max<int64_t>(n, 1); first += piece) {
      const int64_t rows = std::min(piece, n - first);
      QDequantizeArgs<T> numbers{w, nullptr, part.as<T>(), rows, first};
      MG_RUN(qdequantize, T, numbers, &data, to(part));
      GemmArgs<T> args{};
      args.a = in<T>(&x, to_inputs ? mn : mk, op, "x") + (to_inputs ? first : 0);
      args.b = part.as<T>();
      const int64_t at = to_inputs ? 0 : first;
      if (wide) args.wide_c = out<Wide<T>>(&y, size, op, "y") + at;
      else args.c = out<T>(&y, size, op, "y") + at;
      args.m = m, args.n = to_inputs ? k : rows, args.k = to_inputs ? rows : k;
      args.lda = to_inputs ? n : k, args.ldb = k, args.ldc = to_inputs ? k : n;
      args.trans_b = !to_inputs, args.batch = 1;
      args.accumulate = to_inputs && (accumulate || first > 0);
      if (!to_inputs) {
        args.bias = bias ? in<T>(bias, n, op, "bias") + at : nullptr;
        args.residual = residual ? in<T>(residual, mn, op, "residual") + at : nullptr;
        args.slope = slope ? out<T>(slope, mn, op, "slope") + at : nullptr;
        args.act = choice(act, Act::silu, op, "act");
      }
      MG_RUN(gemm, T, args, &x, &part, to(y), bias, each(residual), to(slope));
    }
  });
}

// Ids lie in a buffer that is fed before each replay, and looked at then; while a step is recorded it may hold anything.
void put_rows(const Array& x, const Array& ids, const Array& table) {
  const char* op = "put_rows";
  const int64_t tokens = ids.size, width = tokens > 0 ? x.size / tokens : 0;
  if (x.dtype != table.dtype || width * tokens != x.size || (width > 0 && table.size % width))
    throw shape_error("put_rows: rows of " + shape_text(x.shape, x.rank) + " do not fit " + shape_text(table.shape, table.rank));
  if (!table.writable) throw usage_error("put_rows: the table is read-only");
  check_ids(ids, 0, width > 0 ? table.size / width : 1, op, "ids", !recording());
  PutRowsArgs args{x.data, in<int32_t>(&ids, tokens, op, "ids"), table.data, tokens, width * (int64_t)item_size(x.dtype)};
  MG_RUN_THIS(op, &mg::put_rows, plan_put_rows(args), args, &x, &ids, to(table));
}

}  // namespace

void register_quantized(py::module_& m) {
  using Row = std::tuple<std::string, int, int, bool, int, int, int, bool, bool, int, int>;
  m.def("q_types", [] {
    std::vector<Row> rows;
    for (const QTraits& t : kQTraits) {
      const QType type = (QType)(&t - kQTraits);
      rows.emplace_back(t.name, t.low + t.high, t.offset, t.channel, t.step, t.group, (int)t.least, t.direct,
                        t.book != QBook::floats, (int)q_starts(type), (int)q_gguf_bytes(type));
    }
    return rows;
  }, "The table of types by number; QType of qtensor.py names the columns.");
  m.attr("Q_COLS") = kQCols;
  m.attr("Q_LEAST_GROUP") = kQLeastGroup;
  m.attr("Q_MOST_GROUP") = kQMostGroup;
  m.attr("Q_MOST_K") = kQMostK;
  m.def("q_bytes", &q_bytes, py::arg("type"), py::arg("n"), py::arg("k"), py::arg("group"),
        "Bytes of a quantized weight (n, k), tables at their end included; an order of its columns would follow.");
  m.def("q_table_floats", [](int type, int64_t n, int64_t k, int64_t group) {
    traits_of(type, "q_table_floats");
    return q_table_floats((QType)type, n, k, group);
  }, py::arg("type"), py::arg("n"), py::arg("k"), py::arg("group"), "float32 of the tables.");
  define<&quantize>(m, "quantize", py::arg("x"), py::arg("data"), py::arg("type"), py::arg("n"), py::arg("k"),
        py::arg("group"), py::arg("first") = 0, "Rows x of a weight, from row `first` on, to codes and scales in `data`.");
  define<&q_pack>(m, "q_pack", py::arg("codes"), py::arg("data"), py::arg("type"), py::arg("n"), py::arg("k"),
        py::arg("group"), py::arg("scales") = nullptr, py::arg("leasts") = nullptr, py::arg("bytes") = nullptr,
        py::arg("first") = 0, "Codes (rows, k) and scales, minima, zeros (rows, groups) of others into `data`.");
  define<&q_blocks>(m, "q_blocks", py::arg("blocks"), py::arg("data"), py::arg("type"), py::arg("n"), py::arg("k"),
        py::arg("group"), py::arg("first") = 0, "Rows of GGUF blocks (rows, bytes) into `data`; by panel, 1 where all scales are finite.");
  define<&q_unblocks>(m, "q_unblocks", py::arg("data"), py::arg("blocks"), py::arg("type"), py::arg("n"), py::arg("k"),
        py::arg("group"), py::arg("first") = 0, "Rows of a weight, from row `first` on, as GGUF blocks (rows, bytes).");
  define<&q_fit>(m, "q_fit", py::arg("x"), py::arg("scale"), py::arg("steps"), py::arg("length"), py::arg("low"), py::arg("high"),
        py::arg("sides") = 1, py::arg("rounds") = 1, py::arg("weights") = nullptr, py::arg("least") = nullptr,
        py::arg("bounded") = false, py::arg("book") = 0, "Scales (and minima) of groups of x, searched for.");
  define<&q_dequantize>(m, "q_dequantize", py::arg("data"), py::arg("y"), py::arg("type"), py::arg("n"), py::arg("k"),
        py::arg("group"), py::arg("ids") = nullptr, py::arg("first") = 0, "Rows `ids`, or those from `first` on, as numbers.");
  define<&q_rows>(m, "q_rows", py::arg("x"), py::arg("codes"), py::arg("scales"), py::arg("starts"), py::arg("data"),
        py::arg("type"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("group"),
        "Activations x (m, k) to int8, for products with such a weight.");
  define<&q_gemm>(m, "q_gemm", py::arg("codes"), py::arg("scales"), py::arg("starts"), py::arg("data"), py::arg("c"),
        py::arg("type"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("group"), py::arg("bias") = nullptr,
        py::arg("residual") = nullptr, py::arg("slope") = nullptr, py::arg("act") = 0);
  define<&put_rows>(m, "put_rows", py::arg("x"), py::arg("ids"), py::arg("table"), "table[ids[t]] = x[t]");
  define<&q_matmul>(m, "q_matmul", py::arg("x"), py::arg("data"), py::arg("y"), py::arg("type"), py::arg("m"),
        py::arg("n"), py::arg("k"), py::arg("group"), py::arg("bias") = nullptr, py::arg("residual") = nullptr,
        py::arg("slope") = nullptr, py::arg("act") = 0, py::arg("to_inputs") = false, py::arg("accumulate") = false,
        "y = residual + act(x W^T + bias) with the numbers of W; to_inputs: y (+)= x W.");
}

}  // namespace mg::bindings
