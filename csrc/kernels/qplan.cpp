// Plans of quantized weights.
#include "kernels/plan.h"
#include "kernels/qgemm_grid.h"
#include "kernels/tiles.h"

namespace mg {

namespace {
template <class T> Plan product(const QGemmArgs<T>& args) {
  const int64_t n = q_joined_columns(args);
  if (args.m == 0 || n == 0) return {0, 0};
  const QGrid grid = q_grid(args.m, n, args.w.k);
  return {grid.row_blocks * grid.col_blocks, 0};
}
template <class T> Plan rows(const QRowsArgs<T>& args) {
  const int64_t tiles = q_tiles(args.m, q_tile_rows(args.type)), step = q_row_tiles(args.k);
  return {(tiles + step - 1) / step, 0};
}
}  // namespace

#define MG_PLAN(name, Args, plan)                            \
  Plan plan_##name(const Args<float>& args) { return plan; } \
  Plan plan_##name(const Args<bf16>& args) { return plan; }  \
  Plan plan_##name(const Args<double>&) { return {1, 0}; }
MG_PLAN(qgemm, QGemmArgs, product(args))
MG_PLAN(qrows, QRowsArgs, rows(args))
MG_PLAN(qdequantize, QDequantizeArgs, (Plan{shares_of(args.rows, rows_per_share(args.w.k)), 0}))
MG_PLAN(quantize, QuantizeArgs, (Plan{q_panels(args.rows), 0}))
#undef MG_PLAN

namespace {
template <class T> const char* begin_of(const QGemmArgs<T>& args, int64_t share) {
  const QGrid grid = q_grid(args.m, q_joined_columns(args), args.w.k);
  int64_t before = 0, all = q_panels(args.w.n);
  for (int32_t i = 0; i < args.joined; ++i) all += q_panels(args.more[i].w.n);
  for (int32_t i = 0; i <= args.joined; ++i) {
    const QWeight& w = i == 0 ? args.w : args.more[i - 1].w;
    const JoinedRange range = joined_range(q_panels(w.n), before, all, share / grid.row_blocks, grid.col_blocks);
    before += q_panels(w.n);
    if (range.begin < range.end)
      return reinterpret_cast<const char*>(w.data) + range.begin * q_groups(w.k, w.group) * q_block_bytes(w.type, w.group);
  }
  return nullptr;
}
}  // namespace
const char* weights_begin(const QGemmArgs<float>& args, int64_t share, int64_t) { return begin_of(args, share); }
const char* weights_begin(const QGemmArgs<bf16>& args, int64_t share, int64_t) { return begin_of(args, share); }

Plan plan_qpack(const QPackArgs& args) { return {q_panels(args.rows), 0}; }
Plan plan_qblocks(const QBlocksArgs& args) { return {q_panels(args.rows), 0}; }
Plan plan_qunblocks(const QUnblocksArgs& args) { return {q_panels(args.rows), 0}; }

// Numbers and weights of as many groups as the widest target has lanes.
Plan plan_qfit(const QFitArgs<float>& args) {
  return {(args.groups + kQFitGroups - 1) / kQFitGroups, (size_t)args.length * 2 * 16 * sizeof(float)};
}
Plan plan_qfit(const QFitArgs<double>&) { return {1, 0}; }

}  // namespace mg
