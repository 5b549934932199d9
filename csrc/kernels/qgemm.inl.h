// Product of int8 activations and a quantized weight. Lanes are columns, so no sum is split over lanes; each group's sum of
// products is an exact integer, which a tile turns into float and scales.

struct QTile {
  const int8_t* a;        // [quad][row] words
  const float* scales;    // [group][row]
  const int32_t* starts;  // [group][row]
  const uint8_t* b;       // a panel
  int64_t groups, group, code_bytes, block_bytes;
  float* out;             // [row][kQCols]
  // Bytes to be fetched meanwhile: for each group of each pass over the columns `ahead_bytes` from `ahead` on.
  const uint8_t* ahead;
  int64_t ahead_bytes;
};

// Vectors of columns in hand: with 16 registers, one.
constexpr int kQVectors = kRegisters == 32 && 2 * kWidth <= kQCols ? 2 : 1;
constexpr int64_t kQPasses = kQCols / (kQVectors * kWidth);
// Tiles that fetch the panel after theirs. Where rows are two tiles, the first waits for memory and the second computes out of
// L1 while memory is idle; with a fetch it is not.
constexpr int64_t kQFetching = 2;

struct Q4 {
  static constexpr int kQuads = 2;  // of k in one load of codes
  static inline void split(const uint8_t* p, Ints* out) {
    const Ints both = codes(p);
    out[0] = low_codes(both), out[1] = high_codes(both);
  }
};
struct Q8 {
  static constexpr int kQuads = 1;
  static inline void split(const uint8_t* p, Ints* out) { out[0] = codes(p); }
};

// sum[r][v] += products of `steps` loads of codes.
template <class Codes, int R, int V>
static inline __attribute__((always_inline)) void q_dots(Ints (&sum)[R][V], const uint8_t* b, const int8_t* a, int64_t steps) {
  for (; steps > 0; --steps, b += 4 * kQCols, a += 4 * R * Codes::kQuads) {
    Ints parts[V][Codes::kQuads];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) Codes::split(b + v * 4 * kWidth, parts[v]);
#pragma GCC unroll 2
    for (int q = 0; q < Codes::kQuads; ++q) {
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Quads x = quads(a + 4 * (q * R + r));
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[r][v] = dot(sum[r][v], parts[v][q], x);
      }
    }
  }
}

// Float sums over the groups stay in registers.
template <class Codes, int R> static void q_tile_groups(const QTile& t) {
  constexpr int V = kQVectors;
  const int64_t steps = t.group / (4 * Codes::kQuads);
  const uint8_t* ahead = t.ahead;
  for (int64_t col = 0; col < kQCols; col += V * kWidth) {
    const uint8_t* b = t.b + 4 * col;
    const int8_t* a = t.a;
    const float* scales = t.scales;
    const int32_t* starts = t.starts;
    Vec total[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) total[r][v] = zero();
    }
    for (int64_t g = 0; g < t.groups; ++g, ahead += t.ahead_bytes) {
      for (int64_t i = 0; i < t.ahead_bytes; i += 64) __builtin_prefetch(ahead + i, 0, 2);
      Ints sum[R][V];
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[r][v] = ints(starts[r]);
      }
      q_dots<Codes, R, V>(sum, b, a, steps);
      Vec scale[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) scale[v] = load_halves(b - 4 * col + t.code_bytes + 2 * (col + v * kWidth));
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) total[r][v] = fma(to_floats(sum[r][v]), mul(scale[v], set1(scales[r])), total[r][v]);
      }
      a += R * t.group, scales += R, starts += R, b += t.block_bytes;
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(t.out + r * kQCols + col + v * kWidth, total[r][v]);
    }
  }
}

template <int R> static void q_tile_channel(const QTile& t) {
  constexpr int V = kQVectors;
  for (int64_t col = 0; col < kQCols; col += V * kWidth) {
    Ints sum[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = ints(t.starts[r]);
    }
    q_dots<Q8, R, V>(sum, t.b + 4 * col, t.a, t.group / 4);
    const float* scales = (const float*)(t.b + t.code_bytes) + col;
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        store(t.out + r * kQCols + col + v * kWidth, fma(to_floats(sum[r][v]), mul(load(scales + v * kWidth), set1(t.scales[r])), zero()));
    }
  }
}

using QTileFn = void (*)(const QTile&);
static inline QTileFn q_tile_of(QType type, int64_t rows) {
#define MG_Q(r) {&q_tile_groups<Q8, r>, &q_tile_groups<Q4, r>}
  static constexpr QTileFn groups[kQGroupRows][2] = {MG_Q(1), MG_Q(2), MG_Q(3), MG_Q(4), MG_Q(5), MG_Q(6)};
#undef MG_Q
  static constexpr QTileFn channel[kQChannelRows] = {
      &q_tile_channel<1>, &q_tile_channel<2>, &q_tile_channel<3>, &q_tile_channel<4>,  &q_tile_channel<5>,  &q_tile_channel<6>,
      &q_tile_channel<7>, &q_tile_channel<8>, &q_tile_channel<9>, &q_tile_channel<10>, &q_tile_channel<11>, &q_tile_channel<12>};
  return kQTraits[(int)type].channel ? channel[rows - 1] : groups[rows - 1][type == QType::int4];
}

template <class T> static inline GemmEpilogue<T> q_epilogue(const QGemmArgs<T>& args) {
  GemmArgs<T> gemm = {};
  gemm.c = args.c, gemm.wide_c = args.wide_c, gemm.bias = args.bias, gemm.residual = args.residual, gemm.pre = args.pre;
  gemm.ldc = args.w.n, gemm.act = args.act;
  return gemm_epilogue(gemm, 0);
}

#include "kernels/qexpand.inl.h"
#include "kernels/qstretch.inl.h"

template <class T> static void qgemm_block(const QGemmArgs<T>& args, const QBlock& block) {
  const QWeight& w = args.w;
  if (!kQTraits[(int)w.type].direct) return qgemm_stretches(args, block);
  const int64_t most = q_tile_rows(w.type);
  const GemmEpilogue<T> epilogue = q_epilogue(args);
  alignas(64) float sums[kQChannelRows * kQCols];
  QTile t;
  t.group = w.group, t.groups = q_groups(w.k, w.group);
  t.code_bytes = q_code_bytes(w.type, w.group), t.block_bytes = q_block_bytes(w.type, w.group);
  t.out = sums;
  for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
    t.b = w.data + panel * t.groups * t.block_bytes;
    const int64_t col = panel * kQCols, cols = w.n - col < kQCols ? w.n - col : kQCols;
    const int64_t fetching = block.tile_end - block.tile_begin < kQFetching ? 0 : kQFetching;
    for (int64_t tile = block.tile_begin; tile < block.tile_end; ++tile) {
      const int64_t number = tile - block.tile_begin;
      t.ahead_bytes = number < fetching ? t.block_bytes / (fetching * kQPasses) : 0;
      t.ahead = t.b + t.groups * (t.block_bytes + number * kQPasses * t.ahead_bytes);
      const int64_t row = q_tile_row(args.m, most, tile), height = q_tile_row(args.m, most, tile + 1) - row;
      t.a = args.codes + row * t.groups * t.group;
      t.scales = args.scales + row * t.groups;
      t.starts = args.starts + row * t.groups;
      q_tile_of(w.type, height)(t);
      gemm_finish(epilogue, sums, kQCols, row, height, col, cols);
    }
  }
}

// A share's stretch of the panels of all weights, weight by weight.
template <class T> static void qgemm(const QGemmArgs<T>& args, const Share& share) {
  const int64_t n = q_joined_columns(args);
  if (args.m == 0 || n == 0) return;
  const QGrid grid = q_grid(args.m, n, args.w.k);
  const int64_t row_block = share.index % grid.row_blocks, col_block = share.index / grid.row_blocks;
  const int64_t tiles = q_tiles(args.m, q_tile_rows(args.w.type));
  QBlock block = {row_block * tiles / grid.row_blocks, (row_block + 1) * tiles / grid.row_blocks, 0, 0};
  int64_t before = 0, all = q_panels(args.w.n);
  for (int32_t i = 0; i < args.joined; ++i) all += q_panels(args.more[i].w.n);
  for (int32_t i = 0; i <= args.joined; ++i) {
    const QWeight& w = i == 0 ? args.w : args.more[i - 1].w;
    const JoinedRange range = joined_range(q_panels(w.n), before, all, col_block, grid.col_blocks);
    before += q_panels(w.n);
    if (range.begin == range.end) continue;
    block.panel_begin = range.begin, block.panel_end = range.end;
    if (i == 0) {
      qgemm_block(args, block);
    } else {
      QGemmArgs<T> one = {};
      one.w = w, one.codes = args.codes, one.scales = args.scales, one.starts = args.starts, one.m = args.m;
      one.c = args.more[i - 1].c, one.bias = args.more[i - 1].bias;
      qgemm_block(one, block);
    }
  }
}
