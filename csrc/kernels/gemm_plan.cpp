#include "kernels/gemm_tiles.h"
#include "kernels/plan.h"

namespace mg {

namespace {
template <class T> Plan plan(const GemmArgs<T>& args) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return {0, 0};
  const GemmGrid grid = gemm_grid(args.m, args.n, args.k, args.batch);
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
  const AmxScratch amx = amx_scratch(gemm_grid(args.m, args.n, args.k, args.batch), args.k);
  const size_t bytes = sizeof(bf16) * (size_t)(amx.panel + amx.packed) + sizeof(float) * (size_t)amx.partial;
  if (bytes > made.scratch_bytes) made.scratch_bytes = bytes;
  return made;
}

Plan plan_gemm_joined(const JoinedGemmArgs<float>& args) { return {gemm_joined_shares(args), 0}; }
Plan plan_gemm_joined(const JoinedGemmArgs<double>&) { return {1, 0}; }
Plan plan_gemm_joined(const JoinedGemmArgs<bf16>& args) {
  const AmxScratch amx = amx_scratch(amx_joined_grid(args.m), args.k);
  return {gemm_joined_shares(args), sizeof(bf16) * (size_t)(amx.panel + amx.packed) + sizeof(float) * (size_t)amx.partial};
}

}  // namespace mg
