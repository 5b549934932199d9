#include "kernels/grouped_quantized.h"

#include <string.h>

#include "core/qtensor.h"
#include "kernels/grouped_tiles.h"
#include "kernels/qgemm_grid.h"
#include "kernels/tiles.h"

namespace mg {

namespace {

// Where a row's words and numbers lie among the tiles of m rows.
struct Place {
  int64_t first, height, row;
};
Place place_of(int64_t m, int64_t most, int64_t row) {
  const int64_t tiles = q_tiles(m, most), least = m / tiles, rest = m % tiles;
  const int64_t tall = rest * (least + 1);  // rows in the tiles that are one row higher
  if (row < tall) return {row - row % (least + 1), least + 1, row % (least + 1)};
  return {row - (row - tall) % least, least, (row - tall) % least};
}

// What expert 0 has at `first`, of expert e.
template <class P> const P* of_expert(const P* first, const QExperts& experts, int64_t e) {
  return first ? reinterpret_cast<const P*>(reinterpret_cast<const uint8_t*>(first) + e * experts.stride) : nullptr;
}
QWeight weight_of(const QWeight& first, const QExperts& experts, int64_t e) {
  QWeight w = first;
  w.data = of_expert(first.data, experts, e);
  w.tables = of_expert(first.tables, experts, e), w.order = of_expert(first.order, experts, e);
  return w;
}

// Calls f(expert, unit) for a share's part of all units, of which an expert with so many rows has units_of(rows). However
// rows fall to experts, the shares' parts differ by one unit.
template <class Units, class F>
void each_unit(const QExperts& experts, const Share& share, const Units& units_of, const F& f) {
  const auto rows_of = [&](int64_t e) { return (int64_t)experts.offsets[e + 1] - experts.offsets[e]; };
  int64_t all = 0;
  for (int64_t e = 0; e < experts.count; ++e) all += rows_of(e) > 0 ? units_of(rows_of(e)) : 0;
  const int64_t begin = all * share.index / share.count, end = all * (share.index + 1) / share.count;
  int64_t first = 0;
  for (int64_t e = 0; e < experts.count && first < end; ++e) {
    if (rows_of(e) == 0) continue;
    const int64_t units = units_of(rows_of(e));
    for (int64_t u = begin > first ? begin - first : 0; u < units && first + u < end; ++u) f(e, u);
    first += units;
  }
}

// Experts that rows can reach, at most.
int64_t reached(int64_t rows, int64_t experts) { return rows < experts ? rows : experts; }

// Rows of a weight that are numbers at a time: 2^18 numbers, which stay in L2.
int64_t piece_of(const QWeight& w) {
  const int64_t piece = ((int64_t)1 << 18) / (w.k > 0 ? w.k : 1) / kQCols * kQCols;
  const int64_t least = piece > kQCols ? piece : kQCols;
  return least < w.n ? least : w.n;
}

template <class T> int64_t numbers_bytes(const QWeight& w) { return (piece_of(w) * w.k * (int64_t)sizeof(T) + 63) / 64 * 64; }

}  // namespace

// -- activations -----------------------------------------------------------------------------------------------------------
void qgather(const QGatherArgs& args, const Share& share) {
  const int64_t most = q_tile_rows(args.type), parts = q_starts(args.type), quads = args.groups * args.group / 4;
  const Range rows = range_of(share.index, args.rows, rows_per_share(quads));
  const int32_t* offsets = args.experts.offsets;
  int64_t e = 0;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    while (offsets[e + 1] <= r) ++e;
    const Place from = place_of(args.sources, most, args.order[r] / args.chosen);
    Place to = place_of(offsets[e + 1] - offsets[e], most, r - offsets[e]);
    to.first += offsets[e];
    const int8_t* x = args.codes + from.first * quads * 4 + from.row * 4;
    int8_t* y = args.to_codes + to.first * quads * 4 + to.row * 4;
    if (from.height == 1 && to.height == 1) memcpy(y, x, (size_t)(quads * 4));
    else for (int64_t q = 0; q < quads; ++q) memcpy(y + q * to.height * 4, x + q * from.height * 4, 4);
    for (int64_t g = 0; g < args.groups; ++g)
      args.to_scales[to.first * args.groups + g * to.height + to.row] = args.scales[from.first * args.groups + g * from.height + from.row];
    const int64_t starts = args.groups * parts;
    for (int64_t s = 0; s < starts; ++s)
      args.to_starts[to.first * starts + s * to.height + to.row] = args.starts[from.first * starts + s * from.height + from.row];
  }
}
Plan plan_qgather(const QGatherArgs& args) { return {shares_of(args.rows, rows_per_share(args.groups * args.group / 4)), 0}; }

template <class T> void grouped_qrows(const GroupedQRowsArgs<T>& args, const Share& share) {
  const int64_t groups = q_groups(args.rows.k, args.rows.group), starts = groups * q_starts(args.rows.type);
  const auto plan_of = [&](int64_t rows) {
    QRowsArgs<T> one = args.rows;
    one.m = rows;
    return plan_qrows(one);
  };
  each_unit(args.experts, share, [&](int64_t rows) { return plan_of(rows).shares; }, [&](int64_t e, int64_t unit) {
    const int64_t first = args.experts.offsets[e], rows = args.experts.offsets[e + 1] - first;
    QRowsArgs<T> one = args.rows;
    one.order = of_expert(one.order, args.experts, e);
    one.m = rows;
    one.x += first * one.k;
    one.codes += first * groups * one.group, one.scales += first * groups, one.starts += first * starts;
    args.kernel(one, {unit, plan_of(rows).shares, nullptr});
  });
}
// As many as for plain activations: there are more units, but no more rows.
template <class T> Plan plan_grouped_qrows(const GroupedQRowsArgs<T>& args) {
  return args.rows.m > 0 ? plan_qrows(args.rows) : Plan{0, 0};
}

// -- codes times codes -----------------------------------------------------------------------------------------------------
template <class T> void grouped_qgemm(const GroupedQGemmArgs<T>& args, const Share& share) {
  const QWeight& w = args.product.w;
  const int64_t groups = q_groups(w.k, w.group), starts = groups * q_starts(w.type);
  const auto plan_of = [&](int64_t rows) {
    QGemmArgs<T> one = args.product;
    one.m = rows;
    return plan_qgemm(one);
  };
  each_unit(args.experts, share, [&](int64_t rows) { return plan_of(rows).shares; }, [&](int64_t e, int64_t unit) {
    const int64_t first = args.experts.offsets[e], rows = args.experts.offsets[e + 1] - first;
    QGemmArgs<T> one = args.product;
    one.w = weight_of(w, args.experts, e);
    one.m = rows;
    one.codes += first * groups * w.group, one.scales += first * groups, one.starts += first * starts;
    if (one.c) one.c += first * w.n;
    if (one.wide_c) one.wide_c += first * w.n;
    if (one.bias) one.bias += e * w.n;
    args.kernel(one, {unit, plan_of(rows).shares, share.scratch});
  });
}

// As for a plain product: shares worth handing out, by what is read at least and what is computed.
template <class T> Plan plan_grouped_qgemm(const GroupedQGemmArgs<T>& args) {
  const QWeight& w = args.product.w;
  const int64_t rows = args.product.m, read = reached(rows, args.experts.count);
  if (read == 0 || w.n == 0) return {0, 0};
  const double work = (double)w.n * (double)(w.k > 0 ? w.k : 1);
  const int64_t least = kQMemoryRows * read;
  double want = work * (double)(rows > least ? rows : least) / (double)kQShareCost;
  if (want > (double)kQManyShares) want = (double)kQManyShares;
  const double large = work * (double)rows / (double)kQLargeShare;
  if (large > want) want = large < (double)kQMaxShares ? large : (double)kQMaxShares;
  const int64_t most = read * q_panels(w.n), shares = want > 1.0 ? ((int64_t)want + 1) / 2 * 2 : 1;
  return {shares < most ? shares : most, 0};
}

// -- numbers ---------------------------------------------------------------------------------------------------------------
template <class T> void grouped_qnumbers(const GroupedQNumbersArgs<T>& args, const Share& share) {
  const int64_t n = args.w.n, k = args.w.k, piece = piece_of(args.w), pieces = n > 0 ? (n + piece - 1) / piece : 0;
  T* numbers = static_cast<T*>(share.scratch);
  char* scratch = static_cast<char*>(share.scratch) + numbers_bytes<T>(args.w);
  int64_t made_expert = -1, made_piece = -1;
  const auto make = [&](int64_t e, int64_t p) {
    if (made_expert == e && made_piece == p) return;
    made_expert = e, made_piece = p;
    const int64_t first = p * piece, rows = n - first < piece ? n - first : piece;
    const QDequantizeArgs<T> one = {weight_of(args.w, args.experts, e), nullptr, numbers, rows, first};
    const int64_t count = plan_qdequantize(one).shares;
    for (int64_t i = 0; i < count; ++i) args.numbers(one, {i, count, nullptr});
  };
  const auto multiply = [&](int64_t row, int64_t rows, int64_t e, int64_t p) {
    const int64_t first = p * piece, cols = n - first < piece ? n - first : piece;
    GemmArgs<T> gemm = {};
    gemm.a = args.a + row * (args.to_inputs ? n : k) + (args.to_inputs ? first : 0);
    gemm.b = numbers;
    const int64_t to = args.to_inputs ? row * k : row * n + first;
    if (args.c) gemm.c = args.c + to;
    if (args.wide_c) gemm.wide_c = args.wide_c + to;
    gemm.m = rows, gemm.n = args.to_inputs ? k : cols, gemm.k = args.to_inputs ? cols : k;
    gemm.lda = args.to_inputs ? n : k, gemm.ldb = k, gemm.ldc = args.to_inputs ? k : n;
    gemm.batch = 1, gemm.trans_b = !args.to_inputs;
    gemm.accumulate = args.to_inputs && (args.accumulate || p > 0);
    if (args.bias) gemm.bias = args.bias + e * n + first;
    const int64_t count = plan_gemm(gemm).shares;
    for (int64_t i = 0; i < count; ++i) args.product(gemm, {i, count, scratch});
  };
  // Units: blocks of rows, and of the weight where sums do not go over its rows; those of one piece are neighbours.
  const auto blocks_of = [](int64_t rows) { return (rows + kGroupRows - 1) / kGroupRows; };
  each_unit(args.experts, share, [&](int64_t rows) { return blocks_of(rows) * (args.to_inputs ? 1 : pieces); },
            [&](int64_t e, int64_t unit) {
    const int64_t begin = args.experts.offsets[e], count = args.experts.offsets[e + 1] - begin, blocks = blocks_of(count);
    const int64_t block = unit % blocks, row = begin + block * count / blocks, rows = begin + (block + 1) * count / blocks - row;
    for (int64_t p = args.to_inputs ? 0 : unit / blocks; p < (args.to_inputs ? pieces : unit / blocks + 1); ++p) {
      make(e, p);
      multiply(row, rows, e, p);
    }
  });
}

template <class T> Plan plan_grouped_qnumbers(const GroupedQNumbersArgs<T>& args) {
  const QWeight& w = args.w;
  const int64_t read = reached(args.rows, args.experts.count), width = args.to_inputs ? w.k : w.n;
  if (read == 0 || width == 0) return {0, 0};
  const int64_t piece = piece_of(w), pieces = args.to_inputs || piece == 0 ? 1 : (w.n + piece - 1) / piece;
  const int64_t units = (args.rows / kGroupRows + read) * pieces;
  const double work = (double)args.rows * (double)w.n * (double)w.k / (double)((int64_t)1 << kGemmShareLog2);
  const int64_t shares = work < 2.0 ? 1 : work < (double)kGemmMaxShares ? (int64_t)work : kGemmMaxShares;
  const int64_t rows = args.rows < kGroupRows ? args.rows : kGroupRows;
  const size_t scratch = grouped_scratch<T>(rows, args.to_inputs ? w.k : piece, args.to_inputs ? piece : w.k, kNarrow<T> && !args.wide_c);
  return {shares < units ? shares : units, (size_t)numbers_bytes<T>(w) + scratch};
}

#define MG_TYPE(T)                                                                 \
  template void grouped_qrows<T>(const GroupedQRowsArgs<T>&, const Share&);        \
  template Plan plan_grouped_qrows<T>(const GroupedQRowsArgs<T>&);                 \
  template void grouped_qgemm<T>(const GroupedQGemmArgs<T>&, const Share&);        \
  template Plan plan_grouped_qgemm<T>(const GroupedQGemmArgs<T>&);                 \
  template void grouped_qnumbers<T>(const GroupedQNumbersArgs<T>&, const Share&);  \
  template Plan plan_grouped_qnumbers<T>(const GroupedQNumbersArgs<T>&);
MG_TYPE(float)
MG_TYPE(double)
MG_TYPE(bf16)
#undef MG_TYPE

}  // namespace mg
