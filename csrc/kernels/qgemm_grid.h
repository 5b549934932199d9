// How a quantized product is cut into shares: from the shape alone.
#pragma once
#include "core/args.h"
#include "core/qblock.h"

namespace mg {

// A weight costs as much as 7 rows' products with it when it comes from memory; 2^19 of these are about 2.5 microseconds.
constexpr int64_t kQMemoryRows = 7;
constexpr int64_t kQShareCost = 1 << 19;
constexpr int64_t kQManyShares = 16;
constexpr int64_t kQMaxShares = 64;
constexpr int64_t kQLargeShare = 1 << 23;  // products, about 40 microseconds: what one worker waits for at the end is half of it
// Activations that a panel of weights meets before the next one comes: bytes that stay in L2 beside it.
constexpr int64_t kQRowBytes = 384 * 1024;

// Tiles of rows that one share turns into codes: at least 16,384 numbers.
static inline int64_t q_row_tiles(int64_t k) {
  const int64_t tiles = 16384 / (kQGroupRows * (k > 0 ? k : 1));
  return tiles > 1 ? tiles : 1;
}

constexpr int64_t kQFitGroups = 64;  // groups of a share whose scales are searched for: some 10 microseconds

struct QGrid {
  int64_t row_blocks, col_blocks;
};

static inline QGrid q_grid(int64_t m, int64_t n, int64_t k) {
  QGrid grid = {1, 1};
  const int64_t tiles = q_tiles(m, kQChannelRows);
  const int64_t bytes = m * (k > 0 ? k : 1), panels = q_panels(n);
  if (bytes > kQRowBytes) grid.row_blocks = (bytes + kQRowBytes - 1) / kQRowBytes;
  if (grid.row_blocks > (tiles + 3) / 4) grid.row_blocks = (tiles + 3) / 4;  // at least 48 rows
  const double work = (double)n * (double)(k > 0 ? k : 1);
  const double cost = work * (double)(m > kQMemoryRows ? m : kQMemoryRows), large = cost / (double)kQLargeShare;
  double want = cost / (double)kQShareCost;
  if (want > (double)kQManyShares) want = (double)kQManyShares;
  if (large > want) want = large < (double)kQMaxShares ? large : (double)kQMaxShares;
  grid.col_blocks = ((int64_t)want + grid.row_blocks - 1) / grid.row_blocks;
  if (grid.col_blocks < 1) grid.col_blocks = 1;
  if (grid.col_blocks > 1) grid.col_blocks = (grid.col_blocks + 1) / 2 * 2;  // two threads with as much to read
  if (grid.col_blocks > panels) grid.col_blocks = panels;
  return grid;
}

// Panels of all weights of a product, one after the other.
template <class T> static inline int64_t q_joined_columns(const QGemmArgs<T>& args) {
  int64_t n = args.w.n;
  for (int32_t i = 0; i < args.joined; ++i) n += args.more[i].w.n;
  return n;
}

// What a share computes: tiles of rows and panels of columns of one weight.
struct QBlock {
  int64_t tile_begin, tile_end, panel_begin, panel_end;
};

}  // namespace mg
