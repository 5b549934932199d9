// Matrix product. The promise of GemmArgs (one chain of fma per element, in the order of k) holds because lanes are
// columns of C everywhere: no sum is ever split over lanes or over blocks of k.
//
// A share walks its block of C: for each strip of columns and each block of K, tiles of rows over
// panels of 2 * kWidth columns. B is packed into panels [k][columns], padded with zeros, when first used. A is read where
// it lies unless its words must be made or its lines would fight for the same cache sets: then the rows of a tile are copied
// (if A is transposed, a group of tiles is packed, each as [k][rows]). P says what a packed word is (gemm_tile.inl.h). While a
// tile computes it fetches what is needed next, or copies or packs it.
#include "kernels/gemm_tile.inl.h"
#include "kernels/gemm_vector.inl.h"

// Copies `count` <= kWidth columns of a transposed source, column c, row k at src[c * ld + k], to dst[k * dst_step + c];
// zeros in the columns up to kWidth.
template <class P>
static inline void gemm_pack_columns(const typename P::Element* src, int64_t ld, int64_t count, int64_t depth, float* dst,
                                     int64_t dst_step) {
  int64_t k = 0;  // elements; k / kPer words
  for (; k + kWidth * P::kPer <= depth; k += kWidth * P::kPer) {
    Vec block[kWidth];
    if (count == kWidth) {
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) block[c] = P::along(src + c * ld + k);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) block[c] = c < count ? P::along(src + c * ld + k) : zero();
    }
    gemm_transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) store(dst + (k / P::kPer + i) * dst_step, block[i]);
  }
  for (; k < depth; k += P::kPer) {
    float* row = dst + k / P::kPer * dst_step;
    for (int64_t c = 0; c < kWidth; ++c) row[c] = c < count ? P::word(src + c * ld + k, k + 1 < depth) : 0.0f;
  }
}

// Packs `cols` <= kGemmTileCols columns of B into a panel, kWidth wide if that is enough.
template <class P>
static inline void gemm_pack_panel(const typename P::Element* b, int64_t ldb, bool transposed, int64_t cols, int64_t depth,
                                   float* dst) {
  constexpr int64_t kPer = P::kPer;
  const int64_t words = (depth + kPer - 1) / kPer, step = cols <= kWidth ? kWidth : kGemmTileCols;
  if (transposed) {
    for (int64_t col = 0; col < cols; col += kWidth)
      gemm_pack_columns<P>(b + col * ldb, ldb, cols - col < kWidth ? cols - col : kWidth, depth, dst + col, step);
    return;
  }
  const int64_t last = cols - (step - kWidth);
  for (int64_t k = 0; k < words; ++k) {
    const typename P::Element* row = b + k * kPer * ldb;
    const bool more = k * kPer + 1 < depth;
    __builtin_prefetch(k * kPer + kGemmAhead < depth ? row + kGemmAhead * ldb : row);
    if (step > kWidth) store(dst + k * step, P::across(row, ldb, more, kWidth));
    store(dst + (k + 1) * step - kWidth, P::across(row + step - kWidth, ldb, more, last));
  }
}

// Has a tile fetch a line or two of each row from `src` on; of both rows, if a word takes two.
template <class P> static inline void gemm_ahead_rows(GemmTile& t, const typename P::Element* src, int64_t bytes) {
  t.ahead = (const char*)src;
  t.ahead_second = P::kPer == 2 ? bytes : 64;
  t.ahead_step = bytes * P::kPer;
}

// Has a tile fetch the panel of B at column `col` and depth k .. k + now, which will be packed soon: rows lie in pages of
// their own, where the hardware does not look ahead. A tile's steps are as many as the panel needs.
template <class P>
static inline void gemm_ahead_b(GemmTile& t, const GemmArgs<typename P::Element>& args, const typename P::Element* b, int64_t col,
                                int64_t k, int64_t now) {
  const int64_t bytes = args.ldb * (int64_t)sizeof(typename P::Element);
  if (args.trans_b) {  // 32 rows of `now` elements
    t.ahead = (const char*)(b + col * args.ldb + k);
    t.ahead_second = 64;
    t.ahead_step = 64 * kGemmAheadLines;
    t.ahead_group = (now * (int64_t)sizeof(typename P::Element) + t.ahead_step - 1) / t.ahead_step;
    t.ahead_row = bytes;
  } else {
    gemm_ahead_rows<P>(t, b + k * args.ldb + col, bytes);
  }
}

// Copies rows of A as words, row r to dst + r * step. What a word takes beyond the end of K is zero.
template <class P>
static inline void gemm_copy_rows(const typename P::Element* a, int64_t lda, int64_t rows, int64_t depth, float* dst,
                                  int64_t step) {
  constexpr int64_t kBlock = kWidth * P::kPer;
  for (int64_t r = 0; r < rows; ++r) {
    const typename P::Element* row = a + r * lda;
    int64_t k = 0;
    for (; k + kBlock <= depth; k += kBlock) store(dst + r * step + k / P::kPer, P::along(row + k));
    if (k < depth) store(dst + r * step + k / P::kPer, P::along_n(row + k, depth - k));
  }
}
// A cache line more than whole vectors: rows of a copy do not share cache sets.
static inline int64_t gemm_copy_step(int64_t words) { return (words + 15) / 16 * 16 + 16; }

// Rows of A that many bytes apart share cache sets: the 12 rows of a tile one of L1's 64 sets of 8 lines, the 512 of a block
// of a transposed A 64 of L2's 2048 sets or fewer. From this many panels on a copy of the tile is worth it.
constexpr int64_t kGemmPackPanels = 2;
// Rows of a transposed A that are far: nearer ones are fetched by hardware. Where L2 is left for something far, they are read
// once and in stretches; and so where a tile uses a piece of each cache line only, in blocks of more than a group of tiles and
// this many columns.
constexpr int64_t kGemmFarRow = 1024, kGemmFarCols = 96;
template <class T> static inline bool gemm_copies_a(const GemmArgs<T>& args, int64_t rows, int64_t cols) {
  const int64_t row = args.lda * (int64_t)sizeof(T);
  const bool far = args.trans_a && row > kGemmFarRow;
  if (row % (args.trans_a ? 2048 : 4096) == 0 || (far && gemm_far_caches)) return cols > (kGemmPackPanels - 1) * kGemmTileCols;
  return far && kWidth < 16 && rows > kGemmGroupRows && cols >= kGemmFarCols;
}

// Up to this size of a transposed A, and where a tile's words are a vector, one tile is packed at a time: its lines
// survive until the next one, and a share waits for fewer rows before its first tile. Measured: 4 MiB. A line of bf16 serves
// three tiles and has to survive for as long; there less is better, but for blocks of one strip, which packs nothing twice.
constexpr int64_t kGemmSingleBytes = (int64_t)4 << 20, kGemmNarrowSingleBytes = (int64_t)256 << 10;
template <class T> static inline bool gemm_packs_single(const GemmArgs<T>& args, int64_t cols) {
  const int64_t most = kNarrow<T> && cols > kGemmStrips[0].cols ? kGemmNarrowSingleBytes : kGemmSingleBytes;
  return kWidth == 16 && !gemm_far_caches && args.k * args.lda * (int64_t)sizeof(T) <= most;
}

// A group of tiles of a transposed A for a block of K, of which `done` of `depth` elements are packed: tile i at `to` +
// i * `step`.
template <class T> struct GemmGroup {
  const T* src;
  float* to;
  int64_t step, depth, done, tiles;
  GemmPiece pieces[kGemmGroupTiles];
};
// Tiles are written by turns, so they do not share cache sets.
static inline int64_t gemm_group_step(int64_t words) { return words * kGemmTileRows + 1024 / kGemmGroupTiles; }

// At most `most` tiles from `first` on, of `rows` rows, which are cut into `tiles`, the first `longer` of them one row higher
// than `height`.
template <class T>
static inline void gemm_pieces(GemmGroup<T>& g, int64_t first, int64_t most, int64_t tiles, int64_t height, int64_t longer,
                               int64_t rows) {
  const auto row_of = [=](int64_t tile) { return tile * height + (tile < longer ? tile : longer); };
  g.tiles = tiles - first < most ? tiles - first : most;
  for (int64_t i = 0; i < kGemmGroupTiles; ++i) {  // what is missing is the last one again
    const int64_t row = row_of(first + (i < g.tiles ? i : g.tiles - 1)), left = rows - row;
    g.pieces[i] = {(row - row_of(first)) * (int64_t)sizeof(T), left < kGemmPieceRows ? left : kGemmPieceRows, 0};
  }
  const GemmPiece& end = g.pieces[kGemmGroupTiles - 1];
  const int64_t last = end.from + end.count * (int64_t)sizeof(T) - 1;
  for (int64_t i = 0; i < kGemmGroupTiles; ++i) g.pieces[i].ahead = 64 * i < last ? 64 * i : last;
}

// What no tile has packed.
template <class P> static inline void gemm_pack_group(const GemmGroup<typename P::Element>& g, int64_t lda) {
  using T = typename P::Element;
  constexpr int64_t kPer = P::kPer;
  for (int64_t k = g.done; k < g.depth; k += kPer) {
    const T* row = g.src + k * lda;
    const char* ahead = (const char*)(k + kGemmGroupAhead * kPer < g.depth ? row + kGemmGroupAhead * kPer * lda : row);
    for (const GemmPiece& piece : g.pieces) {
      __builtin_prefetch(ahead + piece.ahead, 0, 2);
      if (kPer == 2) __builtin_prefetch(ahead + piece.ahead + lda * (int64_t)sizeof(T), 0, 2);
    }
    for (int64_t i = 0; i < g.tiles; ++i) {
      const T* from = (const T*)((const char*)row + g.pieces[i].from);
      float* to = g.to + i * g.step + k / kPer * kGemmTileRows;
      for (int64_t r = 0, left; (left = g.pieces[i].count - r) > 0; r += kWidth)
        store(to + r, P::across(from + r, lda, k + 1 < g.depth, left < kWidth ? left : kWidth));
    }
  }
}

// B stays in place if it is used by this many tiles of rows at most, is small enough to live in L1, or has rows as short: panels of
// it would come from L2 as well.
constexpr int64_t kGemmInPlaceTiles = 2;
constexpr int64_t kGemmInPlaceFloats = 4096;
constexpr int64_t kGemmInPlaceRow = 128;

// Of the tile of C that begins at `at`.
template <class T>
static inline void gemm_lines(GemmLines& lines, const GemmEpilogue<T>& e, int64_t at, int64_t height, int64_t cols) {
  const T* given = e.factor ? e.factor : e.residual != e.c ? e.residual : nullptr;
  const int64_t size = e.sums ? sizeof(float) : sizeof(T);
  lines.c = e.sums ? (const char*)(e.sums + at) : (const char*)(e.c + at);
  lines.slope = e.slope ? (const char*)(e.slope + at) : nullptr;
  lines.given = given ? (const char*)(given + at) : nullptr;
  lines.rows = height;
  lines.step = e.ldc * size;
  lines.second = cols * size > 64 ? 64 : 0;
}

// Whether a tile can end in C itself: an activation's constants would take the registers of the sums.
template <class P> static inline bool gemm_ends(const GemmEpilogue<typename P::Element>& e) {
  if constexpr (sizeof(typename P::Element) != sizeof(typename P::Step::Out)) return false;
  return e.act == Act::none && !e.slope && e.c && (!kNarrow<typename P::Element> || !e.sums);
}

// The panel of B that is packed next: its first column, where it goes, and its stretch of K.
struct GemmNext {
  int64_t col, panel, k, now;
};

template <class P>
static void gemm_block_product(const GemmArgs<typename P::Element>& args, const GemmBlock& block, int64_t batch,
                               const GemmGrid& grid, float* scratch) {
  using T = typename P::Element;
  using Step = typename P::Step;
  const GemmScratch sizes = gemm_scratch(grid, args.k, gemm_sums_aside(args));
  float *panels = scratch, *packed = panels + sizes.panels;
  float* partial = sizes.partial ? packed + sizes.tile : nullptr;
  alignas(64) float finished[kGemmTileRows * kGemmTileCols];
  // Without K nothing of A and B is read, and they may be null.
  const T* a = args.k > 0 ? args.a + batch * args.stride_a : (const T*)finished;
  const T* b = args.k > 0 ? args.b + batch * args.stride_b : (const T*)finished;
  const GemmEpilogue<T> epilogue = gemm_epilogue(args, batch);
  const int64_t rows = block.row_end - block.row_begin;
  const bool single = gemm_packs_single(args, block.col_end - block.col_begin);
  const int64_t group = single ? 1 : kGemmGroupTiles;
  const GemmStrip shape = kGemmStrips[args.trans_a && !single];
  const int64_t depth = gemm_depth((args.k + P::kPer - 1) / P::kPer, shape.depth) * P::kPer;
  const int64_t tiles = (rows + kGemmTileRows - 1) / kGemmTileRows;
  const int64_t tile_rows = rows / tiles, longer = rows % tiles;  // even heights: 17 rows are 9 + 8
  const bool b_in_place = !kNarrow<T> && !args.trans_b &&
                          (tiles <= kGemmInPlaceTiles || args.k * args.ldb <= kGemmInPlaceFloats || args.ldb <= kGemmInPlaceRow);
  bool packed_ahead = false;  // the panel of B that comes next
  const bool copy_a = gemm_copies_a(args, rows, block.col_end - block.col_begin);
  const bool packs = args.trans_a && (copy_a || !P::kInMemory || P::kPer > 1);
  GemmGroup<T> coming = {};  // of A's tiles, after the one in use
  const float* in_use = nullptr;
  coming.step = gemm_group_step((depth + P::kPer - 1) / P::kPer);
  coming.to = packed;
  const auto comes = [&](int64_t first, int64_t k) {  // tiles first .. of the block of K at k
    coming.src = a + k * args.lda + block.row_begin + first * tile_rows + (first < longer ? first : longer);
    coming.depth = args.k - k < depth ? args.k - k : depth;
    coming.done = 0;
    gemm_pieces(coming, first, group, tiles, tile_rows, longer, rows);
  };
  if (packs) comes(0, 0);

  for (int64_t strip = block.col_begin; strip < block.col_end; strip += shape.cols) {
    const int64_t strip_cols = block.col_end - strip < shape.cols ? block.col_end - strip : shape.cols;
    const int64_t panel_count = (strip_cols + kGemmTileCols - 1) / kGemmTileCols;
    int64_t k = 0;
    do {  // once even if K is 0: the epilogue of nothing
      const int64_t now = args.k - k < depth ? args.k - k : depth, words = (now + P::kPer - 1) / P::kPer;
      const bool first = k == 0, last = k + now == args.k;
      const bool in_place = !copy_a && P::kInMemory && (args.trans_a ? P::kPer == 1 : now % P::kPer == 0);
      // Tiles copy A's rows for the next one, with their last whole panel, if that is whole vectors and no more of them than a
      // panel has steps.
      const int64_t copy_panel = strip_cols / kGemmTileCols - 1;
      const bool copies = !args.trans_a && !in_place && P::kInMemory && copy_panel >= 0 &&
                          tile_rows > kGemmTileRows - kGemmPackingHeights && kGemmTileRows <= kWidth &&
                          now % (kWidth * P::kPer) == 0;
      int64_t row = block.row_begin;
      bool copied = false;  // the tile of A, while the one before was in use
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t height = tile_rows + (i < longer);
        const T* a_tile = args.trans_a ? a + k * args.lda + row : a + row * args.lda + k;
        GemmTile t;
        t.a = (const char*)a_tile;
        t.a_step = args.lda * (int64_t)sizeof(T);
        if (packs) {
          if (i % group == 0) {
            gemm_pack_group<P>(coming, args.lda);
            in_use = coming.to;
            coming.to = packed + (packed == coming.to ? group * coming.step : 0);
            if (i + group < tiles) comes(i + group, k);
            else if (!last) comes(0, k + now);
            else if (strip + shape.cols < block.col_end) comes(0, 0);
            else coming.depth = coming.done = 0;
          }
          t.a = (const char*)(in_use + i % group * coming.step);
          t.a_step = kGemmTileRows * 4;
        } else if (!in_place) {
          const int64_t step = gemm_copy_step(words);
          float* tile = packed + i % 2 * kGemmTileRows * step;
          if (!copied) gemm_copy_rows<P>(a_tile, args.lda, height, now, tile, step);
          copied = false;
          t.a = (const char*)tile;
          t.a_step = step * 4;
        }
        for (int64_t col = 0; col < strip_cols; col += kGemmTileCols) {
          const int64_t cols = strip_cols - col < kGemmTileCols ? strip_cols - col : kGemmTileCols;
          const T* source = b + (args.trans_b ? (strip + col) * args.ldb + k : k * args.ldb + strip + col);
          if (!b_in_place || (cols != kWidth && cols != kGemmTileCols)) {
            float* panel = panels + (tiles == 1 ? 0 : col * words);  // a panel used once stays in L1
            if (i == 0 && !packed_ahead) gemm_pack_panel<P>(source, args.ldb, args.trans_b, cols, now, panel);
            if (i == 0) packed_ahead = false;
            t.b = panel;
            t.b_step = cols <= kWidth ? kWidth : kGemmTileCols;
          } else if constexpr (!kNarrow<T>) {
            t.b = source;
            t.b_step = args.ldb;
          }
          t.depth = words;
          t.cols = cols;
          const int64_t at = row * args.ldc + strip + col;
          float* sums = epilogue.sums ? epilogue.sums + at : nullptr;
          // The partial sums wait in C, or aside when a residual must survive in it or it is narrower.
          float* aside = partial ? partial + (row - block.row_begin) * sizes.partial_step + col : sums;
          const int64_t aside_step = partial ? sizes.partial_step : args.ldc;
          t.start = first ? (args.accumulate ? sums : nullptr) : aside;
          t.start_step = first ? args.ldc : aside_step;
          if (first && args.accumulate && !sums) {
            gemm_widen(epilogue.c + at, args.ldc, height, cols, finished, kGemmTileCols);
            t.start = finished;
            t.start_step = kGemmTileCols;
          }
          const bool finish = last && epilogue.any;
          t.out = finish ? finished : last ? sums : aside;
          t.out_step = finish ? kGemmTileCols : last ? args.ldc : aside_step;
          const bool ends = finish && gemm_ends<P>(epilogue) && (cols == kWidth || cols == kGemmTileCols);
          t.c = nullptr;
          if (ends) {
            t.c = epilogue.c + at;
            t.c_step = epilogue.ldc;
            t.bias = epilogue.bias ? epilogue.bias + strip + col : nullptr;
            t.factor = epilogue.factor ? epilogue.factor + at : nullptr;
            t.residual = epilogue.residual ? epilogue.residual + at : nullptr;
          }
          t.lines.rows = 0;
          const int64_t p = col / kGemmTileCols;
          t.ahead = (const char*)&t;  // nothing: a line that is at hand
          t.ahead_second = t.ahead_step = t.ahead_row = 0;
          t.ahead_group = words;
          GemmTileFn tile = nullptr;
          // The panel of B that is packed after this one: while this one is in use if both are whole, else it is fetched.
          GemmNext next = {-1, 0, k, now};
          if (i == 0 && p + 1 < panel_count) {
            next = {strip + col + kGemmTileCols, col + kGemmTileCols, k, now};
          } else if (i + 1 == tiles && p + 1 == panel_count) {
            if (!last) next = {strip, 0, k + now, args.k - k - now < depth ? args.k - k - now : depth};
            else if (strip + shape.cols < block.col_end) next = {strip + shape.cols, 0, 0, args.k < depth ? args.k : depth};
          }
          if (next.col >= 0) {
            const bool whole = cols == kGemmTileCols && next.col + kGemmTileCols <= block.col_end && next.now == now;
            if (whole && !b_in_place && tiles > 1 && panel_count > 1 && now % ((args.trans_b ? 16 : 1) * P::kPer) == 0)
              tile = gemm_tile_packing_b<P>(height, args.trans_a, args.trans_b);
            if (tile) {
              t.ahead = (const char*)(b + (args.trans_b ? next.col * args.ldb + next.k : next.k * args.ldb + next.col));
              t.ahead_row = args.ldb * (int64_t)sizeof(T);
              t.copy = panels + next.panel * words;
              packed_ahead = true;
            } else {
              gemm_ahead_b<P>(t, args, b, next.col, next.k, next.now);
            }
          } else if (packs) {
            const int64_t can = single ? words : words / (kGemmGroupTiles * kGemmPieceSteps);
            const int64_t want = (coming.depth - coming.done) / P::kPer;
            if (want > 0 && cols == kGemmTileCols && (!single || want == words))
              tile = single ? gemm_tile_packing_of<P, false, GemmPacks::a_tile>(height)
                            : gemm_tile_packing_of<P, false, GemmPacks::a_group>(height);
            if (tile) {
              t.ahead_row = args.lda * (int64_t)sizeof(T);
              t.ahead = (const char*)coming.src + coming.done * t.ahead_row;
              t.copy = coming.to + coming.done / P::kPer * kGemmTileRows;
              t.copy_step = coming.step;
              t.pieces = coming.pieces;
              t.copy_rows = want < can ? want : can;
              coming.done += t.copy_rows * P::kPer;
            }
          } else if (copies && i + 1 < tiles && p == copy_panel) {
            t.ahead = (const char*)(a_tile + height * args.lda);
            t.ahead_row = args.lda * (int64_t)sizeof(T);
            copied = true;
            const int64_t step = gemm_copy_step(words);
            t.ahead_group = words / kWidth;
            t.copy = packed + (i + 1) % 2 * kGemmTileRows * step;
            t.copy_rows = tile_rows + (i + 1 < longer);
            t.copy_step = step;
            tile = gemm_tile_of<Step, 2, true, GemmDoes::copies>(height);
          } else if (i + 1 < tiles && args.trans_a) {  // A of the next tile is fetched
            if (p == 0) gemm_ahead_rows<P>(t, a_tile + height, args.lda * (int64_t)sizeof(T));
          } else if (i + 1 < tiles && p + 1 == (copies ? copy_panel : panel_count)) {  // a line each step
            t.ahead = (const char*)(a_tile + height * args.lda);
            t.ahead_step = 64;
            t.ahead_group = (now * (int64_t)sizeof(T) + 63) / 64;
            t.ahead_row = args.lda * (int64_t)sizeof(T);
          }
          if (last) {
            gemm_lines(t.lines, epilogue, at, height, cols);
            if (tile && !copied) {  // it packs, and has no groups
              GemmLines& all = t.lines;
              for (; all.rows > 0; --all.rows) gemm_ahead_row(all.c, all.slope, all.given, all.step, all.second);
            } else if (t.ahead_group == words) {
              t.ahead_group = words > height ? words / height : 1;
              t.ahead_row = t.ahead_group * t.ahead_step;
            }
          }
          if (!tile) {
            const bool idle = t.ahead == (const char*)&t;
            if (cols <= kWidth) tile = args.trans_a ? gemm_tile_of<Step, 1, false>(height) : gemm_tile_of<Step, 1, true>(height);
            else if (!idle) tile = args.trans_a ? gemm_tile_of<Step, 2, false>(height) : gemm_tile_of<Step, 2, true>(height);
            else if (args.trans_a) tile = gemm_tile_of<Step, 2, false, kGemmIdle>(height);
            else tile = gemm_tile_of<Step, 2, true, kGemmIdle>(height);
          }
          tile(t);
          if (finish && !ends) gemm_finish(epilogue, finished, kGemmTileCols, row, height, strip + col, cols);
        }
        row += height;
      }
      k += now;
    } while (k < args.k);
  }
}

// One block of C, by whichever way suits its rows.
template <class P>
static void gemm_part(const GemmArgs<typename P::Element>& args, const GemmBlock& block, int64_t batch, const GemmGrid& grid,
                      void* scratch) {
  const int64_t rows = block.row_end - block.row_begin, cols = block.col_end - block.col_begin;
  if (args.trans_b && !args.trans_a && rows <= gemm_vector_rows<P>()) {
    gemm_vectors<P>(args, block, batch);
    return;
  }
  if constexpr (!kNarrow<typename P::Element>) {  // narrow rows are widened once, by packing
    if (!args.trans_b && gemm_is_wide(args, rows, cols)) {
      gemm_wide(args, block, batch);
      return;
    }
  }
  gemm_block_product<P>(args, block, batch, grid, (float*)scratch);
}

template <class P> static void gemm_of(const GemmArgs<typename P::Element>& args, const Share& share) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return;
  const GemmGrid grid = gemm_grid_of(args);
  const GemmBlock block = gemm_block(grid, share.index, args.m, args.n, args.batch);
  for (int64_t p = block.batch_begin; p < block.batch_end; ++p) gemm_part<P>(args, block, p, grid, share.scratch);
}
