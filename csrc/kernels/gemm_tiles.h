// How a matrix product is cut into shares and blocks: one place for the plan (which sizes the scratch) and the kernels
// (which walk the blocks). From the shape alone, never from the instruction set or the threads.
#pragma once
#include <stdint.h>

#include "core/args.h"

namespace mg {

// A strip of C: the panels of B for `cols` columns and `depth` words of K stay in L2 (512 KiB), past which the rows of A
// stream. Deep and narrow, because C is read and written once for each block of K; wide and less deep where groups of tiles of
// a transposed A are packed: each strip packs it anew, and `rows` rows of A wait in L2 too. Cutting K keeps the chain of fma:
// the partial sum is stored and reloaded.
struct GemmStrip {
  int64_t depth, cols, rows;
};
// Rows of a transposed A that are packed together, for whole cache lines of each k: 4 tiles of 12 rows (8, 6 or 12 smaller ones).
constexpr int64_t kGemmGroupRows = 48;
constexpr GemmStrip kGemmStrips[] = {{1024, 128, 24}, {512, 256, 2 * kGemmGroupRows}};  // by whether groups are packed
// Shares start at multiples of these: 12 rows are whole tiles for 12, 6 and 4 row kernels; 32 columns whole panels. Where that
// would make uneven blocks (128 rows: 60 and 68), at multiples of 4 rows.
constexpr int64_t kGemmRowStep = 12, kGemmFineRowStep = 4;
constexpr int64_t kGemmColStep = 32;
// 2^18 multiply-adds are about 5 microseconds: less is not worth handing out. 8 shares are enough for a team to balance, 16
// where each still has 2^23 and A is not packed; beyond that each share packs again, so more come only with blocks of C of 2^17
// elements each.
constexpr int kGemmShareLog2 = 18;
constexpr int kGemmLargeShareLog2 = 23;
// A weight costs as much as 4 rows' products with it when it comes from memory. With one row shares of 2^17 weights (256 KiB of
// bf16) leave a worker that is done little to wait for; with more, a row-major B's stretches would be too short.
constexpr int64_t kGemmMemoryRows = 4;
constexpr int kGemmMemoryShareLog2 = 19;
constexpr int kGemmBlockLog2 = 17;
constexpr int64_t kGemmManyShares = 8;
constexpr int64_t kGemmMoreShares = 16;
constexpr int64_t kGemmMaxShares = 64;
// Blocks no smaller than this: a panel of B is used by at least 48 rows, a tile of A by at least 64 columns. Half of it
// where all would be one share otherwise.
constexpr int64_t kGemmMinRows = 48;
constexpr int64_t kGemmMinCols = 64;
// Rows of C this short are not cut where there are rows enough: what is packed of A would serve two panels only.
constexpr int64_t kGemmWholeRow = 128;

// Whether what lies behind L2 is far, as on Intel's servers: targets/dispatch.cpp says so before a kernel runs. It decides what
// is packed when, and into which cache what is not packed is fetched; never a number.
extern bool gemm_far_caches;

struct GemmGrid {
  int64_t row_blocks, col_blocks, rows, cols;  // blocks of at most `rows` x `cols`
  int64_t groups, group;                       // products are handed out `group` at a time
  int64_t row_step;                            // blocks start at multiples of it
};

static inline int64_t gemm_steps(int64_t n, int64_t step) { return (n + step - 1) / step; }

// m * n * k as a double: the exact value does not matter, not overflowing does. packs_a: A is transposed, and B is not.
static inline __attribute__((always_inline)) GemmGrid gemm_grid(int64_t m, int64_t n, int64_t k, int64_t batch, bool packs_a = false) {
  GemmGrid grid = {1, 1, m, n, batch, 1, kGemmRowStep};
  const double work = (double)(m > kGemmMemoryRows || batch > 1 ? m : kGemmMemoryRows) * (double)n * (double)(k > 0 ? k : 1);
  const double share = (double)((int64_t)1 << kGemmShareLog2);
  if (work < 2 * share) {
    if (batch > 1) {
      const double most = work > 0 ? share / work : (double)batch;
      int64_t group = most >= (double)batch ? batch : most < 1 ? 1 : (int64_t)most;
      const int64_t least = (batch + kGemmMaxShares - 1) / kGemmMaxShares;
      group = group > least ? group : least;
      grid.group = group;
      grid.groups = (batch + group - 1) / group;
    }
    return grid;
  }
  double want = work / share;
  if (want > (double)kGemmManyShares) {
    want = work / (double)((int64_t)1 << kGemmLargeShareLog2);
    const double most = (double)(packs_a ? kGemmManyShares : kGemmMoreShares);
    want = want < (double)kGemmManyShares ? (double)kGemmManyShares : want > most ? most : want;
  }
  const double memory = m == 1 && batch == 1 ? work / (double)((int64_t)1 << kGemmMemoryShareLog2) : 0;
  if (memory > want) want = memory;
  const double large = (double)m * (double)n / (double)((int64_t)1 << kGemmBlockLog2);
  if (work / share > large && large > want) want = large;
  if (want > (double)kGemmMaxShares) want = (double)kGemmMaxShares;
  if (batch > 1) want = want * 2 / (double)batch;  // the batch already gives shares
  const bool whole = packs_a && n <= kGemmWholeRow && (double)m >= want * (double)kGemmMinRows;
  // Columns before rows, up to twice as many rows: a panel of B is packed for the rows of its block.
  while (2 * grid.row_blocks * grid.col_blocks <= (int64_t)want) {
    const int64_t rows = m / grid.row_blocks, cols = n / grid.col_blocks;
    const int64_t least = grid.row_blocks * grid.col_blocks == 1 ? 1 : 2;
    const bool split_rows = rows >= least * kGemmMinRows, split_cols = !whole && cols >= least * kGemmMinCols;
    if (split_rows && (rows > 2 * cols || !split_cols)) grid.row_blocks *= 2;
    else if (split_cols) grid.col_blocks *= 2;
    else break;
  }
  const int64_t col_steps = gemm_steps(n, kGemmColStep);
  if (grid.row_blocks > gemm_steps(m, kGemmRowStep)) grid.row_blocks = gemm_steps(m, kGemmRowStep);
  grid.row_step = gemm_steps(m, kGemmRowStep) % grid.row_blocks ? kGemmFineRowStep : kGemmRowStep;
  const int64_t row_steps = gemm_steps(m, grid.row_step);
  if (grid.col_blocks > col_steps) grid.col_blocks = col_steps;
  grid.rows = gemm_steps(row_steps, grid.row_blocks) * grid.row_step;
  grid.cols = gemm_steps(col_steps, grid.col_blocks) * kGemmColStep;
  return grid;
}

template <class T> static inline GemmGrid gemm_grid_of(const GemmArgs<T>& args) {
  return gemm_grid(args.m, args.n, args.k, args.batch, args.trans_a && !args.trans_b);
}

// Shares of JoinedGemmArgs.
template <class T> static inline int64_t gemm_joined_shares(const JoinedGemmArgs<T>& args) {
  return args.m == 0 ? 0 : gemm_grid(args.m, joined_columns(args), args.k, 1).col_blocks;
}

struct GemmBlock {
  int64_t batch_begin, batch_end, row_begin, row_end, col_begin, col_end;
};

static inline int64_t gemm_shares(const GemmGrid& grid) { return grid.groups * grid.row_blocks * grid.col_blocks; }

// Neighbouring shares have the same rows, so that workers write rows of their own: side by side in a row, each is handed lines
// of C that the other writes, because hardware fetches past the end of a stretch. (Halves of the shares still begin with the
// same columns of B.)
static inline GemmBlock gemm_block(const GemmGrid& grid, int64_t index, int64_t m, int64_t n, int64_t batch) {
  const int64_t col = index % grid.col_blocks, rest = index / grid.col_blocks;
  const int64_t row = rest % grid.row_blocks, group = rest / grid.row_blocks;
  const int64_t row_steps = gemm_steps(m, grid.row_step), col_steps = gemm_steps(n, kGemmColStep);
  GemmBlock block = {group * grid.group,
                     (group + 1) * grid.group,
                     row * row_steps / grid.row_blocks * grid.row_step,
                     (row + 1) * row_steps / grid.row_blocks * grid.row_step,
                     col * col_steps / grid.col_blocks * kGemmColStep,
                     (col + 1) * col_steps / grid.col_blocks * kGemmColStep};
  if (block.batch_end > batch) block.batch_end = batch;
  if (block.row_end > m) block.row_end = m;
  if (block.col_end > n) block.col_end = n;
  return block;
}

// K is cut into equal blocks, so that no short one is left over.
static inline int64_t gemm_depth(int64_t words, int64_t most) {
  if (words <= most) return words;
  const int64_t blocks = (words + most - 1) / most;
  return ((words + blocks - 1) / blocks + 15) / 16 * 16;
}

// Partial sums wait in C, unless a residual is added (it may be C itself, which must then stay whole until the last block)
// or C is narrower than they are.
template <class T> static inline bool gemm_sums_aside(const GemmArgs<T>& args) {
  return args.residual || (kNarrow<T> && !args.wide_c);
}

// Scratch of a share, in floats: panels of B, tiles of A, and partial sums of a block when K is cut; for either strip,
// and for words of one element, which need more.
struct GemmScratch {
  int64_t panels, tile, partial, partial_step;
};
static inline GemmScratch gemm_scratch(const GemmGrid& grid, int64_t k, bool aside) {
  GemmScratch most = {0, 0, 0, 0};
  for (const GemmStrip& strip : kGemmStrips) {
    const int64_t depth = k < strip.depth ? k : strip.depth, cols = grid.cols < strip.cols ? grid.cols : strip.cols;
    const int64_t padded = (cols + kGemmColStep - 1) / kGemmColStep * kGemmColStep, panels = depth * padded;
    if (panels > most.panels) most.panels = panels;
    if ((depth + 31) * strip.rows > most.tile) most.tile = (depth + 31) * strip.rows;
    if (padded > most.partial_step) most.partial_step = padded;
  }
  if (aside && k > kGemmStrips[1].depth) most.partial = grid.rows * most.partial_step;
  return most;
}

// The product on AMX tiles: 32 x 32 of C in registers, 32 k a step.
constexpr int64_t kAmxTile = 32;
constexpr int64_t kAmxRows = 16;  // of one register: shares start at multiples
constexpr int64_t kAmxK = 32;
constexpr int64_t kAmxDepth = 1024;

// K of a block: equal blocks.
static inline int64_t amx_depth(int64_t k) {
  const int64_t steps = gemm_steps(k, kAmxK), blocks = gemm_steps(k, kAmxDepth);
  return blocks > 0 ? gemm_steps(steps, blocks) * kAmxK : 0;
}

// Few rows times a transposed B: its transpose is computed, from B as it lies, and A is what is packed.
constexpr int64_t kAmxTurnedRows = 256;
static inline bool amx_turned(const GemmArgs<bf16>& args) {
  return !args.trans_a && args.trans_b && !args.accumulate && args.m <= kAmxTurnedRows;
}

// Units of 2^26 multiply-adds (some 50 microseconds), or up to four smaller ones; never more than gemm_grid's shares, which hand
// them out. Cut where the least is packed: B for each block of rows, A (costly if transposed) for each block of columns.
constexpr int kAmxUnitLog2 = 26, kAmxTransposedUnitLog2 = 27, kAmxSmallUnitLog2 = 21;
static inline GemmGrid amx_grid(const GemmArgs<bf16>& args) {
  GemmGrid grid = gemm_grid_of(args);
  grid.row_step = kAmxRows;
  if (args.batch == 1 && args.m > kAmxRows && grid.row_blocks * grid.col_blocks > 1) {
    const double work = (double)args.m * (double)args.n * (double)args.k;
    const double small = work / (double)((int64_t)1 << kAmxSmallUnitLog2);
    const double large = work / (double)((int64_t)1 << (args.trans_a ? kAmxTransposedUnitLog2 : kAmxUnitLog2));
    const double want = large > 4 ? large : small < 4 ? small : 4;
    const int64_t most = grid.row_blocks * grid.col_blocks;
    const int64_t row_steps = gemm_steps(args.m, kAmxTile), col_steps = gemm_steps(args.n, kAmxTile);
    const double cost_a = args.trans_a ? 2.5 : amx_turned(args) ? 1 : 0.5, cost_b = amx_turned(args) ? 0.5 : 1;
    int64_t units = 1;
    while (2 * units <= most && 2 * units <= want) units *= 2;
    double least = -1;
    for (int64_t rows = 1; rows <= units; rows *= 2) {
      const int64_t cols = units / rows;
      if (rows > row_steps || cols > col_steps) continue;
      const double cost = cost_b * (double)rows * (double)args.n + cost_a * (double)cols * (double)args.m;
      if (least >= 0 && cost >= least) continue;
      least = cost;
      grid.row_blocks = rows;
      grid.col_blocks = cols;
    }
  }
  grid.rows = gemm_steps(gemm_steps(args.m, kAmxRows), grid.row_blocks) * kAmxRows;
  grid.cols = gemm_steps(gemm_steps(args.n, kGemmColStep), grid.col_blocks) * kGemmColStep;
  return grid;
}

// Scratch of a share in elements: panels of B and a tile of A for one block of k, and sums where K is cut. It only grows with
// K, whose blocks do not.
struct AmxScratch {
  int64_t panels, tile, partial;
};
static inline AmxScratch amx_scratch(const GemmGrid& grid, int64_t k) {
  const int64_t depth = k < kAmxDepth ? gemm_steps(k, kAmxK) * kAmxK : kAmxDepth;
  const int64_t rows = gemm_steps(grid.rows, kAmxTile) * kAmxTile, cols = gemm_steps(grid.cols, kAmxTile) * kAmxTile;
  return {depth * cols, depth * rows, k > kAmxDepth ? rows * cols : 0};
}
static inline int64_t amx_scratch_bytes(const GemmGrid& grid, int64_t k) {
  const AmxScratch sizes = amx_scratch(grid, k);
  return (int64_t)sizeof(uint16_t) * (sizes.panels + sizes.tile) + (int64_t)sizeof(float) * sizes.partial;
}

// Of products of few rows as one: 256 columns at a time.
static inline GemmGrid amx_joined_grid(int64_t m) { return {1, 1, m, 256, 1, 1, kGemmRowStep}; }

}  // namespace mg
