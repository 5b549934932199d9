#include "kernels/gemm_tiles.h"
#include "kernels/plan.h"

namespace mg {

bool gemm_far_caches = false;

namespace {
template <class T> Plan plan(const GemmArgs<T>& args) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return {0, 0};
  const GemmGrid grid = gemm_grid_of(args);
  const GemmScratch scratch = gemm_scratch(grid, args.k, gemm_sums_aside(args));
  return {gemm_shares(grid), sizeof(Wide<T>) * (size_t)(scratch.panels + scratch.tile + scratch.partial)};
}
}  // namespace

Plan plan_gemm(const GemmArgs<float>& args) { return plan(args); }
Plan plan_gemm(const GemmArgs<double>& args) { return plan(args); }
// Whichever of the two products of bf16 the machine has.
Plan plan_gemm(const GemmArgs<bf16>& args) {
  Plan made = plan(args);
  if (made.shares == 0) return made;
  const size_t bytes = (size_t)amx_scratch_bytes(amx_grid(args), args.k);
  if (bytes > made.scratch_bytes) made.scratch_bytes = bytes;
  return made;
}

Plan plan_gemm_joined(const JoinedGemmArgs<float>& args) { return {gemm_joined_shares(args), 0}; }
Plan plan_gemm_joined(const JoinedGemmArgs<double>&) { return {1, 0}; }
Plan plan_gemm_joined(const JoinedGemmArgs<bf16>& args) {
  return {gemm_joined_shares(args), (size_t)amx_scratch_bytes(amx_joined_grid(args.m), args.k)};
}

namespace {
// Of a few rows times a transposed B.
template <class T> const char* begin_of(const GemmArgs<T>& args, int64_t share) {
  if (args.m > kJoinedRows || !args.trans_b || args.batch != 1) return nullptr;
  const GemmGrid grid = gemm_grid(args.m, args.n, args.k, 1);
  return reinterpret_cast<const char*>(args.b + gemm_block(grid, share, args.m, args.n, 1).col_begin * args.ldb);
}
template <class T> const char* begin_of(const JoinedGemmArgs<T>& args, int64_t share, int64_t shares) {
  int64_t before = 0, all = 0;
  for (int32_t i = 0; i < args.count; ++i) all += joined_units(args.weights[i].n);
  for (int32_t i = 0; i < args.count; ++i) {
    const auto& weight = args.weights[i];
    const JoinedRange range = joined_range(joined_units(weight.n), before, all, share, shares);
    before += joined_units(weight.n);
    if (range.begin < range.end) return reinterpret_cast<const char*>(weight.b + range.begin * 32 * args.k);
  }
  return nullptr;
}
}  // namespace

const char* weights_begin(const GemmArgs<float>& args, int64_t share, int64_t) { return begin_of(args, share); }
const char* weights_begin(const GemmArgs<bf16>& args, int64_t share, int64_t) { return begin_of(args, share); }
const char* weights_begin(const JoinedGemmArgs<float>& args, int64_t share, int64_t shares) { return begin_of(args, share, shares); }
const char* weights_begin(const JoinedGemmArgs<bf16>& args, int64_t share, int64_t shares) { return begin_of(args, share, shares); }

}  // namespace mg
