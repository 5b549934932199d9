// Products and attention of bf16 on AMX tiles; every other kernel is avx512bf16's. As in avx512.cpp, no STL header here.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/scan_tiles.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

namespace mg::avx512amx {
#include "simd/avx512.h"
#include "simd/avx512bf16.h"
namespace {
#include "simd/math.h"
//
#include "kernels/loops.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/gemm_amx.inl.h"
#include "kernels/gemm_joined.inl.h"
#include "kernels/grouped.inl.h"
#include "kernels/attention.inl.h"
#include "kernels/attention_pairs.inl.h"
#include "kernels/attention_amx.inl.h"

void gemm_joined(const JoinedGemmArgs<bf16>& args, const Share& share) {
  const GemmGrid grid = amx_joined_grid(args.m);
  amx_begin();
  gemm_joined_of(args, share, [&](const GemmArgs<bf16>& one, const GemmBlock& whole) {
    for (int64_t col = whole.col_begin; col < whole.col_end; col += grid.cols) {
      GemmBlock block = whole;
      block.col_begin = col;
      if (col + grid.cols < whole.col_end) block.col_end = col + grid.cols;
      amx_block(one, block, 0, grid, share.scratch);
    }
  });
  _tile_release();
}
void grouped_linear(const GroupedArgs<bf16>& args, const Share& share) {
  amx_begin();
  grouped_rows(args, share, &amx_block);
  _tile_release();
}
void grouped_weight(const GroupedWeightArgs<bf16>& args, const Share& share) {
  amx_begin();
  grouped_columns(args, share, &amx_block);
  _tile_release();
}
}  // namespace

const KernelTable<bf16>* table_bf16() {
  static const KernelTable<bf16> kernels = [] {
    KernelTable<bf16> all = *avx512bf16::table_bf16();
    all.attention = &attention_on_tiles;
    all.attention_backward = &attention_backward_on_tiles;
    all.gemm = &gemm_amx;
    all.gemm_joined = &gemm_joined;
    all.grouped_linear = &grouped_linear;
    all.grouped_weight = &grouped_weight;
    all.peak = &peak_amx;
    return all;
  }();
  return &kernels;
}
}  // namespace mg::avx512amx
