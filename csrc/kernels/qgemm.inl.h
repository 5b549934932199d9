// Product of int8 activations and a quantized weight. Lanes are columns, so no sum is split over lanes; each group's sum of
// products is an exact integer, which a tile turns into float and scales.

struct QTile {
  const int8_t* a;        // [quad][row] words
  const float* scales;    // [group][row]
  const int32_t* starts;  // [group][row]
  const uint8_t* b;       // a panel
  int64_t groups, group, code_bytes, block_bytes;
  float* out;             // [row][kQCols], or
  void* c;                // rows of T, `ldc` apart, which the sums go to at once, behind what there is of a bias and a residual
  const void *bias, *residual;
  int64_t ldc;
  // Bytes to be fetched meanwhile, in order: `ahead_bytes` for each group, from `ahead` on.
  const uint8_t* ahead;
  int64_t ahead_bytes;
};

// Vectors of columns in hand, in powers of two: as many as leave the sums of `rows` rows and what the products need in
// registers, and the totals too where there are 32. Of 16, totals wait in L1 for the end of a group: words of activations are
// loaded for each product, and two vectors share them. For 1 to 6 rows (sums + codes + activations and what else + totals of 6):
//   VPDPBUSD, 512 bits   2 2 2 2 2 2    12 + 2 + 1 + 12 = 27   the 32 columns
//   VPDPBUSD, 256 bits   4 4 2 2 2 2    12 + 2 + 1 = 15
//   VPMADDUBSW, 256      4 4 2 2 2 2    12 + 2 + 2 = 16        products are added by themselves
//     8 bits             4 2 2 2 1 1     6 + 2 + 3 = 11        absolute values beside codes
//   VPMADDUBSW, 512      2 2 2 2 2 2    12 + 4 + 3 + 12 = 31
//   SDOT, USMMLA         8 4 4 2 2 2    12 + 2 + 2 + 12 = 28   activations by element
//   lanes, NEON          8 4 2 2 2 2    12 + 2 + 5 + 12 = 31
//   lanes, scalar        4 2 2 2 1 1     6 + 1 + 5 = 12
constexpr int q_vectors(int rows, int bits, bool totals) {
  int vectors = 1;
  while (2 * vectors * kWidth <= kQCols &&
         dot_registers(rows, 2 * vectors, bits) + (totals && kRegisters > 16 ? rows * 2 * vectors : 0) <= kRegisters)
    vectors *= 2;
  return vectors;
}
// Tiles that fetch the panel after theirs. Where rows are two tiles, the first waits for memory and the second computes out of
// L1 while memory is idle; with a fetch it is not.
constexpr int64_t kQFetching = 2;
constexpr int64_t kQPlain = 32;  // numbers of most groups
// Groups whose loop is unrolled: with VPDPBUSD and 32 registers. On AVX2 it took longer.
constexpr int64_t kQUnrolled = kWidth == 16 && !kNarrowSums ? kQPlain : 0;

struct Q4 {
  static constexpr int kBits = 4, kStep = 2;  // quads of k that lie together
  static inline Ints take(const uint8_t* p, int q) { return q ? high_codes(codes(p)) : low_codes(codes(p)); }
};
template <int Bits> struct QBytes {
  static constexpr int kBits = Bits, kStep = kByteQuads;
  static inline Ints take(const uint8_t* p, int q) { return codes(p + 4 * kQCols * q); }
};

// sums += products of `quads` quads of k; take(quad, q, v): the codes of quad + q, where `quad` is a multiple of kStep.
template <class Codes, int R, int V, int Stride = R, class Take>
static inline __attribute__((always_inline)) void q_dots(QSums<R, V, Codes::kBits>& sums, const int8_t* a, int64_t quads, const Take& take) {
  constexpr int kStep = Codes::kStep;
  constexpr int64_t kMost = QSums<R, V, Codes::kBits>::kQuads / kStep * kStep;  // before sums are folded
  int64_t quad = 0;
  const auto add_until = [&](int64_t end) __attribute__((always_inline)) {
    for (; quad < end; quad += kStep, a += 4 * Stride * kStep)
      sums.template add<Stride, kStep>([&](int q, int v) __attribute__((always_inline)) { return take(quad, q, v); }, a);
  };
  if constexpr (kMost <= kStep || kMost > kQMostGroup) {  // each step folds, or none
    add_until(quads);
  } else {
    while (quad < quads) {
      add_until(quads - quad < kMost ? quads : quad + kMost);
      sums.fold();
    }
  }
}

// Float sums over the groups stay in registers where there are 32. Group: their numbers, or 0, any.
template <class T, class Codes, int R, int Group> static void q_tile_groups(const QTile& t) {
  constexpr int V = q_vectors(R, Codes::kBits, true);
  const int64_t quads = (Group ? Group : t.group) / 4, ahead_bytes = t.ahead_bytes / (kQCols / (V * kWidth));
  const uint8_t* ahead = t.ahead;
  for (int64_t col = 0; col < kQCols; col += V * kWidth) {
    const uint8_t* b = t.b + 4 * col;
    const int8_t* a = t.a;
    const float* scales = t.scales;
    const int32_t* starts = t.starts;
    Vec total[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total[r][v] = zero();
    }
    for (int64_t g = 0; g < t.groups; ++g, ahead += ahead_bytes) {
      for (int64_t i = 0; i < ahead_bytes; i += 64) __builtin_prefetch(ahead + i, 0, 2);
      QSums<R, V, Codes::kBits> sums;  // of codes less 128, which is their offset, no start is needed
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) sums.start(r, ints(sums.kLess128 ? 0 : starts[r]));
      q_dots<Codes, R, V>(sums, a, quads, [&](int64_t quad, int q, int v) __attribute__((always_inline)) {
        return Codes::take(b + quad * (Codes::kBits * kQCols / 2) + v * 4 * kWidth, q);
      });
      Vec scale[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) scale[v] = load_halves(b - 4 * col + t.code_bytes + 2 * (col + v * kWidth));
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) total[r][v] = fma(to_floats(sums.get(r, v)), mul(scale[v], set1(scales[r])), total[r][v]);
      }
      a += R * 4 * quads, scales += R, starts += R, b += t.block_bytes;
    }
    if (t.c) {
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          const int64_t j = col + v * kWidth, at = r * t.ldc + j;
          Vec x = total[r][v];
          if (t.bias) x = add(x, load((const T*)t.bias + j));
          if (t.residual) x = add(load((const T*)t.residual + at), x);
          store((T*)t.c + at, x);
        }
      }
      continue;
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store(t.out + r * kQCols + col + v * kWidth, total[r][v]);
    }
  }
}

// Rows First .. First + R - 1 of a tile of Height.
template <int Height, int First, int R> static inline __attribute__((always_inline)) void q_channel_rows(const QTile& t) {
  constexpr int V = q_vectors(R, 8, false);
  for (int64_t col = 0; col < kQCols; col += V * kWidth) {
    QSums<R, V, 8> sums;
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sums.start(r, ints(sums.kLess128 ? 0 : t.starts[First + r]));
    const uint8_t* b = t.b + 4 * col;
    q_dots<QBytes<8>, R, V, Height>(sums, t.a + 4 * First, t.group / 4, [&](int64_t quad, int q, int v) __attribute__((always_inline)) {
      return QBytes<8>::take(b + quad * 4 * kQCols + v * 4 * kWidth, q);
    });
    const float* scales = (const float*)(t.b + t.code_bytes) + col;
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vec x_scale = set1(t.scales[First + r]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        store(t.out + (First + r) * kQCols + col + v * kWidth, fma(to_floats(sums.get(r, v)), mul(load(scales + v * kWidth), x_scale), zero()));
    }
  }
}
template <int R> static void q_tile_channel(const QTile& t) {
  constexpr int kHalf = kRegisters > 16 || R <= 6 ? R : (R + 1) / 2;  // with 16 registers 12 rows leave room for one vector
  q_channel_rows<R, 0, kHalf>(t);
  if constexpr (kHalf < R) q_channel_rows<R, kHalf, R - kHalf>(t);
}

using QTileFn = void (*)(const QTile&);
template <class T> static inline QTileFn q_tile_of(QType type, int64_t group, int64_t rows) {
#define MG_Q(r)                                                                                                    \
  {                                                                                                                \
    &q_tile_groups<T, QBytes<8>, r, 0>, &q_tile_groups<T, Q4, r, 0>, &q_tile_groups<T, QBytes<8>, r, kQUnrolled>,  \
        &q_tile_groups<T, Q4, r, kQUnrolled>                                                                       \
  }
  static constexpr QTileFn groups[kQGroupRows][4] = {MG_Q(1), MG_Q(2), MG_Q(3), MG_Q(4), MG_Q(5), MG_Q(6)};
#undef MG_Q
  static constexpr QTileFn channel[kQChannelRows] = {
      &q_tile_channel<1>, &q_tile_channel<2>, &q_tile_channel<3>, &q_tile_channel<4>,  &q_tile_channel<5>,  &q_tile_channel<6>,
      &q_tile_channel<7>, &q_tile_channel<8>, &q_tile_channel<9>, &q_tile_channel<10>, &q_tile_channel<11>, &q_tile_channel<12>};
  return kQTraits[(int)type].channel ? channel[rows - 1] : groups[rows - 1][2 * (group == kQUnrolled) + (type == QType::int4)];
}

template <class T> static inline GemmEpilogue<T> q_epilogue(const QGemmArgs<T>& args) {
  GemmArgs<T> gemm = {};
  gemm.c = args.c, gemm.wide_c = args.wide_c, gemm.bias = args.bias, gemm.residual = args.residual, gemm.slope = args.slope;
  gemm.ldc = args.w.n, gemm.act = args.act;
  return gemm_epilogue(gemm, 0);
}

#include "kernels/qexpand.inl.h"
#include "kernels/qstretch.inl.h"

template <class T> static void qgemm_block(const QGemmArgs<T>& args, const QBlock& block) {
  const QWeight& w = args.w;
  if (!kQTraits[(int)w.type].direct) return qgemm_stretches(args, block);
  const int64_t most = q_tile_rows(w.type), tiles = q_tiles(args.m, most), first = q_tile_row(args.m, most, block.tile_begin);
  const int64_t least = args.m / tiles, taller = args.m % tiles;  // heights of tiles; as many of them have a row more
  const GemmEpilogue<T> epilogue = q_epilogue(args);
  alignas(64) float sums[kQChannelRows * kQCols];
  QTile t;
  t.group = w.group, t.groups = q_groups(w.k, w.group);
  t.code_bytes = q_code_bytes(w.type, w.group), t.block_bytes = q_block_bytes(w.type, w.group);
  t.out = sums, t.ldc = w.n;
  // Whole panels of groups that are only added to.
  const bool ends = !kQTraits[(int)w.type].channel && args.c && args.act == Act::none && !args.slope;
  for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
    t.b = w.data + panel * t.groups * t.block_bytes;
    const int64_t col = panel * kQCols, cols = w.n - col < kQCols ? w.n - col : kQCols;
    const int64_t fetching = block.tile_end - block.tile_begin < kQFetching ? 0 : kQFetching;
    // Where nothing is fetched, what the hardware foresees is a load that comes again and again: bytes stay in a loop.
    const int64_t unrolled = fetching || w.type == QType::int4 ? w.group : 0;
    int64_t height = 0;
    for (int64_t tile = block.tile_begin, row = first; tile < block.tile_end; ++tile, row += height) {
      height = least + (tile < taller);
      const int64_t number = tile - block.tile_begin;
      t.ahead_bytes = number < fetching ? t.block_bytes / fetching : 0;
      t.ahead = t.b + t.groups * (t.block_bytes + number * t.ahead_bytes);
      t.a = args.codes + row * t.groups * t.group;
      t.scales = args.scales + row * t.groups;
      t.starts = args.starts + row * t.groups;
      const bool direct = ends && cols == kQCols;
      t.c = direct ? args.c + row * w.n + col : nullptr;
      t.bias = args.bias ? args.bias + col : nullptr;
      t.residual = args.residual ? args.residual + row * w.n + col : nullptr;
      q_tile_of<T>(w.type, unrolled, height)(t);
      if (!direct) gemm_finish(epilogue, sums, kQCols, row, height, col, cols);
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
