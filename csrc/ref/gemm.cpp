#include "kernels/gemm_tiles.h"
#include "ref/ref.h"

namespace mg::ref {

void gemm(const GemmArgs<double>& args, const Share& share) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return;
  const GemmGrid grid = gemm_grid_of(args);
  const GemmBlock block = gemm_block(grid, share.index, args.m, args.n, args.batch);
  for (int64_t p = block.batch_begin; p < block.batch_end; ++p) {
    const double* a = args.a + p * args.stride_a;
    const double* b = args.b + p * args.stride_b;
    for (int64_t i = block.row_begin; i < block.row_end; ++i) {
      for (int64_t j = block.col_begin; j < block.col_end; ++j) {
        const int64_t at = p * args.stride_c + i * args.ldc + j;
        double sum = args.accumulate ? args.c[at] : 0.0;
        for (int64_t k = 0; k < args.k; ++k) {
          const double x = args.trans_a ? a[k * args.lda + i] : a[i * args.lda + k];
          const double y = args.trans_b ? b[j * args.ldb + k] : b[k * args.ldb + j];
          sum += x * y;
        }
        if (args.bias) sum += args.bias[j];
        if (args.factor) sum *= args.factor[at];
        if (args.slope) args.slope[at] = act_slope(args.act, sum);
        sum = act_value(args.act, sum);
        if (args.residual) sum += args.residual[at];
        args.c[at] = sum;
      }
    }
  }
}

void gemm_joined(const JoinedGemmArgs<double>& args, const Share&) {
  for (int32_t w = 0; w < args.count; ++w) {
    const auto& weight = args.weights[w];
    for (int64_t i = 0; i < args.m; ++i) {
      for (int64_t j = 0; j < weight.n; ++j) {
        double sum = 0.0;
        for (int64_t k = 0; k < args.k; ++k) sum += args.a[i * args.k + k] * weight.b[j * args.k + k];
        weight.c[i * weight.n + j] = weight.bias ? sum + weight.bias[j] : sum;
      }
    }
  }
}

}  // namespace mg::ref
