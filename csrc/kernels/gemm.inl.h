// Matrix product. The promise of GemmArgs (one chain of fma per element, in the order of k) holds because lanes are
// columns of C everywhere: no sum is ever split over lanes or over blocks of k.
//
// A share walks its block of C: for each strip of kGemmCols columns and each block of kGemmDepth k, tiles of rows over
// panels of 2 * kWidth columns. B is packed into panels [k][columns], padded with zeros, when first used; A's tile is
// packed [k][rows] when enough panels use it.
#include "kernels/gemm_tile.inl.h"
#include "kernels/gemm_vector.inl.h"

// Copies `count` <= kWidth columns of a transposed source, column c, row k at src[c * ld + k], to dst[k * dst_step + c];
// zeros in the columns up to kWidth.
static inline void gemm_pack_columns(const float* src, int64_t ld, int64_t count, int64_t depth, float* dst,
                                     int64_t dst_step) {
  int64_t k = 0;
  for (; k + kWidth <= depth; k += kWidth) {
    Vec block[kWidth];
    if (count == kWidth) {
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) block[c] = load(src + c * ld + k);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) block[c] = c < count ? load(src + c * ld + k) : zero();
    }
    gemm_transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) store(dst + (k + i) * dst_step, block[i]);
  }
  for (; k < depth; ++k) {
    for (int64_t c = 0; c < kWidth; ++c) dst[k * dst_step + c] = c < count ? src[c * ld + k] : 0.0f;
  }
}

// Rows of a wide matrix lie in pages of their own, where the hardware does not prefetch: ask for the 8th row ahead.
constexpr int64_t kGemmAhead = 8;

// Packs `cols` columns of B into panels of kGemmTileCols (the last one kWidth wide if that is enough); panel p starts at
// dst + p * kGemmTileCols * depth. Row-major B is read row after row, whole rows at a time.
static inline void gemm_pack_panels(const float* b, int64_t ldb, bool transposed, int64_t cols, int64_t depth, float* dst) {
  if (!transposed && cols <= kGemmTileCols) {  // one panel: short rows, known trip counts
    const int64_t step = cols <= kWidth ? kWidth : kGemmTileCols, last = cols - (step - kWidth);
    for (int64_t k = 0; k < depth; ++k) {
      if (step > kWidth) store(dst + k * step, load(b + k * ldb));
      store(dst + (k + 1) * step - kWidth, load_n(b + k * ldb + step - kWidth, last));
    }
    return;
  }
  for (int64_t k = 0; k < (transposed ? 1 : depth); ++k) {
    const float* ahead = b + (k + kGemmAhead < depth ? k + kGemmAhead : k) * ldb;
    for (int64_t col = 0; col < cols; col += kWidth) {
      const int64_t panel = col / kGemmTileCols * kGemmTileCols, count = cols - col < kWidth ? cols - col : kWidth;
      const int64_t step = cols - panel <= kWidth ? kWidth : kGemmTileCols;
      float* out = dst + panel * depth + (col - panel);
      if (transposed) {
        gemm_pack_columns(b + col * ldb, ldb, count, depth, out, step);
      } else {
        __builtin_prefetch(ahead + col);
        store(out + k * step, count == kWidth ? load(b + k * ldb + col) : load_n(b + k * ldb + col, count));
      }
    }
  }
}

// Packing a tile of A costs about half a cycle per element, using it 2 cycles per panel; from this many panels on, the
// packed copy (one stream instead of 12, no cache-set conflicts between rows) is worth it.
constexpr int64_t kGemmPackPanels = 4;
// Transposed A has a tile's 12 rows in one cache line of each k: four tiles are packed at a time, to touch each line once.
constexpr int64_t kGemmPackTiles = kGemmPackTileRows / kGemmPackedRows;

// `tiles` tiles are left, `left` rows, the first `longer` of them one row higher than `rows`. What lies behind a tile's rows
// in its packed row is never used, so whole vectors are copied where A has them.
static inline void gemm_pack_tiles(const float* a, int64_t lda, int64_t left, int64_t tiles, int64_t rows, int64_t longer,
                                   int64_t depth, float* dst) {
  if (tiles > kGemmPackTiles) tiles = kGemmPackTiles;
  for (int64_t k = 0; k < depth; ++k) {
    const float* row = a + k * lda;
    const float* ahead = a + (k + kGemmAhead < depth ? k + kGemmAhead : k) * lda;
    for (int64_t i = 0; i < tiles * rows; i += 16) __builtin_prefetch(ahead + i);
    int64_t at = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const Vec x = left - at >= kWidth ? load(row + at) : load_n(row + at, left - at);
      store(dst + (i * depth + k) * kGemmPackedRows, x);
      at += rows + (i < longer);
    }
  }
}

// B stays in place if it is used by this many tiles of rows at most, or small enough to live in L1.
constexpr int64_t kGemmInPlaceTiles = 2;
constexpr int64_t kGemmInPlaceFloats = 4096;

static void gemm_block_product(const GemmArgs<float>& args, const GemmBlock& block, int64_t batch, const GemmGrid& grid,
                               float* scratch) {
  const GemmScratch sizes = gemm_scratch(grid, args.k, args.residual != nullptr);
  float *panels = scratch, *packed = panels + sizes.panels;
  float* partial = sizes.partial ? packed + sizes.tile : nullptr;
  const float *a = args.a + batch * args.stride_a, *b = args.b + batch * args.stride_b;
  float* c = args.c + batch * args.stride_c;
  const GemmEpilogue epilogue = gemm_epilogue(args, batch);
  const int64_t rows = block.row_end - block.row_begin, depth = gemm_depth(args.k);
  const int64_t tiles = (rows + kGemmTileRows - 1) / kGemmTileRows;
  const int64_t tile_rows = rows / tiles, longer = rows % tiles;  // even heights: 17 rows are 9 + 8
  const bool b_in_place = !args.trans_b && (tiles <= kGemmInPlaceTiles || args.k * args.ldb <= kGemmInPlaceFloats);
  alignas(64) float finished[kGemmTileRows * kGemmTileCols];

  for (int64_t strip = block.col_begin; strip < block.col_end; strip += kGemmCols) {
    const int64_t strip_cols = block.col_end - strip < kGemmCols ? block.col_end - strip : kGemmCols;
    const bool pack_a = strip_cols > (kGemmPackPanels - 1) * kGemmTileCols;
    int64_t k = 0;
    do {  // once even if K is 0: the epilogue of nothing
      const int64_t now = args.k - k < depth ? args.k - k : depth;
      const bool first = k == 0, last = k + now == args.k;
      int64_t row = block.row_begin;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t height = tile_rows + (i < longer);
        const float* a_tile = args.trans_a ? a + k * args.lda + row : a + row * args.lda + k;
        int64_t a_step = args.lda;
        bool in_place = !args.trans_a;
        if (pack_a) {
          float* tile = packed + i % kGemmPackTiles * now * kGemmPackedRows;
          if (!args.trans_a) {
            gemm_pack_columns(a_tile, args.lda, height, now, tile, kGemmPackedRows);
          } else if (i % kGemmPackTiles == 0) {
            gemm_pack_tiles(a_tile, args.lda, block.row_end - row, tiles - i, tile_rows, longer - i, now, tile);
          }
          a_tile = tile;
          a_step = kGemmPackedRows;
          in_place = false;
        }
        for (int64_t col = 0; col < strip_cols; col += kGemmTileCols) {
          const int64_t cols = strip_cols - col < kGemmTileCols ? strip_cols - col : kGemmTileCols;
          const float* source = b + (args.trans_b ? (strip + col) * args.ldb + k : k * args.ldb + strip + col);
          GemmTile t;
          t.a = a_tile;
          t.a_step = a_step;
          t.b = source;
          t.b_step = args.ldb;
          if (!b_in_place || (!kGemmMaskedColumns && cols != kWidth && cols != kGemmTileCols)) {
            float* panel = panels + (tiles == 1 ? 0 : col * now);  // a panel used once stays in L1
            if (i == 0 && (b_in_place || args.trans_b)) {
              gemm_pack_panels(source, args.ldb, args.trans_b, cols, now, panel);
            } else if (i == 0 && col == 0) {
              gemm_pack_panels(source, args.ldb, false, strip_cols, now, panel);
            }
            t.b = panel;
            t.b_step = cols <= kWidth ? kWidth : kGemmTileCols;
          }
          t.depth = now;
          t.cols = cols;
          float* at = c + row * args.ldc + strip + col;
          // The partial sums wait in C, or aside when a residual must survive in it.
          float* aside = partial ? partial + (row - block.row_begin) * sizes.partial_step + col : at;
          const int64_t aside_step = partial ? sizes.partial_step : args.ldc;
          t.start = first ? (args.accumulate ? at : nullptr) : aside;
          t.start_step = first ? args.ldc : aside_step;
          const bool finish = last && epilogue.any;
          t.out = finish ? finished : last ? at : aside;
          t.out_step = finish ? kGemmTileCols : last ? args.ldc : aside_step;
          if (cols > kWidth) (in_place ? gemm_tile_of<2, true>(height) : gemm_tile_of<2, false>(height))(t);
          else (in_place ? gemm_tile_of<1, true>(height) : gemm_tile_of<1, false>(height))(t);
          if (finish) gemm_finish(epilogue, finished, kGemmTileCols, row, height, strip + col, cols);
        }
        row += height;
      }
      k += now;
    } while (k < args.k);
  }
}

static void gemm(const GemmArgs<float>& args, const Share& share) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return;
  const GemmGrid grid = gemm_grid(args.m, args.n, args.k, args.batch);
  const GemmBlock block = gemm_block(grid, share.index, args.m, args.n, args.batch);
  for (int64_t p = block.batch_begin; p < block.batch_end; ++p) {
    const int64_t rows = block.row_end - block.row_begin, cols = block.col_end - block.col_begin;
    if (args.trans_b && rows <= kGemmVectorRows) gemm_vectors(args, block, p);
    else if (!args.trans_b && gemm_is_wide(args, rows, cols)) gemm_wide(args, block, p);
    else gemm_block_product(args, block, p, grid, (float*)share.scratch);
  }
}
