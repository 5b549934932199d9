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

Plan plan_qpack(const QPackArgs& args) { return {q_panels(args.rows), 0}; }
Plan plan_qblocks(const QBlocksArgs& args) { return {q_panels(args.rows), 0}; }

}  // namespace mg
