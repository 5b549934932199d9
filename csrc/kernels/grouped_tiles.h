// How products over groups of rows are cut: from the worst case of the shapes, although the rows of a group are data.
#pragma once
#include <stdint.h>

#include "kernels/gemm_tiles.h"

namespace mg {

// Rows of an expert that one unit takes: enough for a panel of B that is packed once, few enough to share out an expert
// that has them all.
constexpr int64_t kGroupRows = 256;
constexpr int64_t kGroupCols = 256;  // whole strips of either kind

// Units are blocks of rows times blocks of columns. However rows fall to experts, there are no more blocks of rows than
// `blocks`: one for each started kGroupRows of each expert.
struct GroupedGrid {
  int64_t blocks, col_blocks, cols, shares;
};
static inline GroupedGrid grouped_grid(int64_t rows, int64_t n, int64_t k, int64_t experts) {
  GroupedGrid grid = {0, 0, n, 0};
  if (rows == 0 || n == 0 || experts == 0) return grid;
  grid.blocks = rows / kGroupRows + (experts < rows ? experts : rows);
  if (grid.blocks > rows) grid.blocks = rows;
  const int64_t wanted = gemm_steps(kGemmManyShares, grid.blocks), most = n / kGemmMinCols;
  int64_t cuts = gemm_steps(n, kGroupCols);
  if (cuts < wanted) cuts = wanted < most ? wanted : most > cuts ? most : cuts;
  grid.cols = gemm_steps(gemm_steps(n, cuts), kGemmColStep) * kGemmColStep;
  if (grid.cols > n) grid.cols = n;
  grid.col_blocks = gemm_steps(n, grid.cols);
  const double work = (double)rows * (double)n * (double)(k > 0 ? k : 1) / (double)((int64_t)1 << kGemmShareLog2);
  grid.shares = grid.blocks * grid.col_blocks;
  if (work < (double)grid.shares) grid.shares = work < 2.0 ? 1 : (int64_t)work;
  return grid;
}
static inline GemmGrid grouped_unit(int64_t rows, int64_t cols) { return {1, 1, rows, cols, 1, 1, kGemmRowStep}; }

// Weight gradients: a product a group, whose depth is the group's rows.
static inline GemmGrid grouped_weight_grid(int64_t rows, int64_t m, int64_t n, int64_t experts) {
  return gemm_grid(m, n, experts > 0 ? rows / experts : 0, experts);
}

}  // namespace mg
