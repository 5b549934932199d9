// Plans of products over groups of rows. The float64 reference is never cut.
#include "kernels/grouped_quantized.h"
#include "kernels/grouped_tiles.h"
#include "kernels/plan.h"
#include "kernels/tiles.h"

namespace mg {

namespace {
// Scratch of a block no larger than `grid`'s, for any depth up to `k`: both only grow with either.
template <class T> size_t scratch_bytes(const GemmGrid& grid, int64_t k, bool aside) {
  const GemmScratch sizes = gemm_scratch(grid, k, aside);
  size_t bytes = sizeof(Wide<T>) * (size_t)(sizes.panels + sizes.tile + sizes.partial);
  if (kNarrow<T>) {  // whichever of the two products of bf16 the machine has
    const size_t tiles = (size_t)amx_scratch_bytes(grid, k);
    if (tiles > bytes) bytes = tiles;
  }
  return bytes;
}

}  // namespace

// Of any product of so many rows and columns at most: its blocks may be rounded up to whole tiles.
template <class T> size_t grouped_scratch(int64_t rows, int64_t cols, int64_t depth, bool aside) {
  return scratch_bytes<T>(grouped_unit(rows + kGemmRowStep, cols + kGemmColStep), depth, aside);
}
template size_t grouped_scratch<float>(int64_t, int64_t, int64_t, bool);
template size_t grouped_scratch<double>(int64_t, int64_t, int64_t, bool);
template size_t grouped_scratch<bf16>(int64_t, int64_t, int64_t, bool);

namespace {
template <class T> Plan linear_plan(const GroupedArgs<T>& args) {
  const GroupedGrid grid = grouped_grid(args.rows, args.n, args.k, args.experts);
  if (grid.shares == 0) return {0, 0};
  const int64_t rows = args.rows < kGroupRows ? args.rows : kGroupRows;
  return {grid.shares, scratch_bytes<T>(grouped_unit(rows, grid.cols), args.k, kNarrow<T> && !args.wide_c)};
}

template <class T> Plan weight_plan(const GroupedWeightArgs<T>& args) {
  if (args.m == 0 || args.n == 0 || args.experts == 0) return {0, 0};
  const GemmGrid grid = grouped_weight_grid(args.rows, args.m, args.n, args.experts);
  return {gemm_shares(grid), scratch_bytes<T>(grid, args.rows, kNarrow<T> && !args.wide_c)};
}
}  // namespace

Plan plan_grouped_linear(const GroupedArgs<float>& args) { return linear_plan(args); }
Plan plan_grouped_linear(const GroupedArgs<bf16>& args) { return linear_plan(args); }
Plan plan_grouped_linear(const GroupedArgs<double>&) { return {1, 0}; }
Plan plan_grouped_weight(const GroupedWeightArgs<float>& args) { return weight_plan(args); }
Plan plan_grouped_weight(const GroupedWeightArgs<bf16>& args) { return weight_plan(args); }
Plan plan_grouped_weight(const GroupedWeightArgs<double>&) { return {1, 0}; }

namespace {
Plan route_plan(int64_t tokens, int64_t experts) {
  return {shares_of(tokens, rows_per_share(experts)), sizeof(double) * (size_t)experts};
}
}  // namespace
Plan plan_route(const RouteArgs<float>& args) { return route_plan(args.tokens, args.experts); }
Plan plan_route(const RouteArgs<bf16>& args) { return route_plan(args.tokens, args.experts); }
Plan plan_route(const RouteArgs<double>&) { return {1, 0}; }

#define MG_PLAN(name, Args, shares)                                   \
  Plan plan_##name(const Args<float>& args) { return {(shares), 0}; } \
  Plan plan_##name(const Args<bf16>& args) { return {(shares), 0}; }  \
  Plan plan_##name(const Args<double>&) { return {1, 0}; }
MG_PLAN(route_weights, RouteWeightsArgs, shares_of(args.tokens, rows_per_share(args.experts)))
MG_PLAN(route_weights_backward, RouteWeightsArgs, shares_of(args.tokens, rows_per_share(args.experts)))
MG_PLAN(gather_rows, GatherArgs, shares_of(args.rows, rows_per_share(args.width)))
MG_PLAN(combine_rows, CombineArgs, shares_of(args.tokens, rows_per_share(args.chosen * args.width)))
MG_PLAN(combine_dot, CombineArgs, shares_of(args.tokens, rows_per_share(args.chosen * args.width)))
MG_PLAN(grouped_sum, GroupedWeightArgs, shares_of(args.m, kColumnBlock))
#undef MG_PLAN

Plan plan_sort_experts(const SortExpertsArgs<float>&) { return {1, 0}; }
Plan plan_sort_experts(const SortExpertsArgs<double>&) { return {1, 0}; }

}  // namespace mg
