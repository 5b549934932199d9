// The inner kernel of a matrix product: a tile of C in registers, for any vector width.
//
// Registers. AVX-512 (32): 12 rows x 2 vectors = 24 sums + 2 of B + 1 of A = 27. AVX2 (16): 6 x 2 = 12 + 2 + 1 = 15.
// NEON (32): 8 x 2 = 16 + 2 + 8 of A, which gcc loads all at once (with 12 rows it spills sums). SSE2 (16): 4 x 2 = 8 + 2 +
// 1 = 11. All but NEON's divide kGemmRowStep.
#include "kernels/gemm_turn.inl.h"

constexpr int kGemmTileRows = kWidth == 16 ? 12 : kWidth == 8 ? 6 : kRegisters == 32 ? 8 : 4;
constexpr int kGemmTileCols = 2 * kWidth;
// A transposed A is packed a group of tiles at a time: a tile's 12 rows are less than a cache line of each k. A tile's words of one
// k are written by whole vectors; what lies behind its rows is overwritten by those of the next k.
constexpr int64_t kGemmGroupTiles = kGemmGroupRows / kGemmTileRows;
constexpr int64_t kGemmPieceRows = (kGemmTileRows + kWidth - 1) / kWidth * kWidth;

// Packed operands are 32-bit words in float arrays. Here a word is one element, widened; simd/avx512bf16.h has pairs of
// bf16. `along` takes words from one row (n elements of it), `across` from n columns of row k (and k + 1, if a word holds
// two and there is `more`), `word` one from a row, and Step::step is what a tile does with a word of A and a vector of B.
// A tile can end in C of type Step::Out; kRounds: by an instruction, if Step::rounds says so of each vector.
// kInMemory: a row's words lie in memory as they are.
struct FmaStep {
  using Out = float;
  static constexpr bool kRounds = false;
  static inline Vec step(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
};
template <class T> struct FloatWords {
  using Element = T;
  using Step = FmaStep;
  static constexpr int kPer = 1;
  static constexpr bool kInMemory = sizeof(T) == sizeof(float);
  static inline Vec along(const T* p) { return load(p); }
  static inline Vec along_n(const T* p, int64_t n) { return load_n(p, n); }
  static inline Vec across(const T* row, int64_t, bool, int64_t n) { return n == kWidth ? load(row) : load_n(row, n); }
  static inline float word(const T* p, bool) { return value_of(*p); }
};
// A word at any address: bf16 pairs are aligned to two bytes only.
static inline Vec gemm_word(const char* p) {
  float word;
  memcpy(&word, p, 4);
  return set1(word);
}

// Rows of a wide matrix lie in pages of their own, where the hardware does not prefetch: ask for the 8th row ahead where no
// tile has.
constexpr int64_t kGemmAhead = 8;
constexpr int64_t kGemmGroupAhead = 16;  // of a transposed A
// Steps of a tile for each piece that it packs: one of AVX2 has no room for it.
constexpr int64_t kGemmPieceSteps = 2;

// Cache lines that a tile may fetch for each k: as many as it takes of B.
constexpr int64_t kGemmAheadLines = kGemmTileCols > 16 ? 2 : 1;

// Of a row of a transposed A: the `count` elements from byte `from` on. Meanwhile byte `ahead` of a later row is asked for; the
// pieces of a row ask for all of its lines.
struct GemmPiece {
  int64_t from, count, ahead;
};

// Lines of C and of what is as large, which a tile asks for while it computes: a row with each group of what it fetches. All
// asked for at once before a tile, most are dropped, and each store waits.
struct GemmLines {
  const char *c, *slope, *given;  // given: factor or residual; the last two may be null
  int64_t rows, step, second;     // bytes from row to row, and to a row's second line
};

struct GemmTile {
  const char* a;
  const float* b;
  int64_t a_step;          // bytes from row to row of A (kRows), else from k to k
  int64_t b_step;
  int64_t depth;           // in words
  const float* start;      // sums start from here, or from zero when null
  int64_t start_step;
  float* out;
  int64_t out_step, cols;
  // Instead of `out`, where columns are whole vectors: C of type Step::Out = residual + (sums + bias) factor, each but C or null,
  // in rows `c_step` apart. What goes through memory once more takes as long as 20 steps.
  void* c;
  const void *bias, *factor, *residual;
  int64_t c_step;
  // What to fetch meanwhile, for each k: the cache line at `ahead` and, of two, the one `ahead_second` bytes on. Then on by
  // `ahead_step` bytes, and after `ahead_group` of these to the next row, `ahead_row` bytes from the last.
  const char* ahead;
  int64_t ahead_second, ahead_step, ahead_group, ahead_row;
  GemmLines lines;
  // Instead of that: the vector at `ahead` goes to `copy`, for `copy_rows` rows (then the last of them again), each
  // `copy_step` floats on; or a panel of B at `ahead`, `ahead_row` bytes from row to row, is packed into `copy`; or the next
  // tile of a transposed A, piece 0 of each row; or `copy_rows` words of K of a group of tiles: piece i of each row goes to
  // `copy` + i * `copy_step`. What they wait for is hidden behind the arithmetic.
  float* copy;
  int64_t copy_rows, copy_step;
  const GemmPiece* pieces;
};

// The sums at the start: from memory, or zero.
template <int R, int V>
static inline __attribute__((always_inline)) void gemm_sums_from(const GemmTile& t, int64_t last, Vec (&sum)[R][V]) {
  if (!t.start) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = zero();
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const float* row = t.start + r * t.start_step;
#pragma GCC unroll 2
    for (int v = 0; v < V - 1; ++v) sum[r][v] = load(row + v * kWidth);
    sum[r][V - 1] = last == kWidth ? load(row + (V - 1) * kWidth) : load_n(row + (V - 1) * kWidth, last);
  }
}

// Sums in registers -> C.
template <class Step, int R, int V>
static inline __attribute__((always_inline)) void gemm_end(const GemmTile& t, Vec (&sum)[R][V]) {
  using Out = typename Step::Out;
  Out* c = (Out*)t.c;
  const int64_t step = t.c_step;
  if (const Out* bias = (const Out*)t.bias) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const Vec b = load(bias + v * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r][v] = add(sum[r][v], b);
    }
  }
  if (const Out* factor = (const Out*)t.factor) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = mul(sum[r][v], load(factor + r * step + v * kWidth));
  }
  if (const Out* residual = (const Out*)t.residual) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = add(load(residual + r * step + v * kWidth), sum[r][v]);
  }
  if constexpr (Step::kRounds) {
    bool can = true;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) can &= Step::rounds(sum[r][v]);
    if (__builtin_expect(can, 1)) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) Step::store_rounded(c + r * step + v * kWidth, sum[r][v]);
      return;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + r * step + v * kWidth, sum[r][v]);
}

// Stores them.
template <class Step, int R, int V>
static inline __attribute__((always_inline)) void gemm_sums_to(const GemmTile& t, int64_t last, Vec (&sum)[R][V]) {
  if (t.c) {
    gemm_end<Step, R, V>(t, sum);
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* row = t.out + r * t.out_step;
#pragma GCC unroll 2
    for (int v = 0; v < V - 1; ++v) store(row + v * kWidth, sum[r][v]);
    if (last == kWidth) store(row + (V - 1) * kWidth, sum[r][V - 1]);
    else store_n(row + (V - 1) * kWidth, sum[r][V - 1], last);
  }
}

// Where the words of A are that come next. Rows are addressed as one of four pointers plus 0, 1 or 2 steps: twelve pointers
// would not fit the registers.
template <int R> struct GemmRows {
  const char* at[4];
  int64_t step;
};
template <int R> static inline __attribute__((always_inline)) GemmRows<R> gemm_rows(const GemmTile& t) {
  return {{t.a, t.a + (R > 3 ? 3 * t.a_step : 0), t.a + (R > 6 ? 6 * t.a_step : 0), t.a + (R > 9 ? 9 * t.a_step : 0)}, t.a_step};
}

// One word of each row times a vector or two of B.
template <class Step, int R, int V, bool kRows>
static inline __attribute__((always_inline)) void gemm_step(GemmRows<R>& a, const Vec (&column)[V], Vec (&sum)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec x = gemm_word(kRows ? a.at[r / 3] + r % 3 * a.step : a.at[0] + 4 * r);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = Step::step(x, column[v], sum[r][v]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < (kRows ? (R + 2) / 3 : 1); ++i) {
    a.at[i] += kRows ? 4 : a.step;
    asm("" : "+r"(a.at[i]));  // or the compiler makes a pointer for every row again
  }
}

// One row's; the pointers go to the next.
template <int kWrite> static inline __attribute__((always_inline)) void gemm_ahead_row(const char*& p, int64_t step, int64_t second) {
  __builtin_prefetch(p, kWrite);
  __builtin_prefetch(p + second, kWrite);
  p += step;
}
static inline __attribute__((always_inline)) void gemm_ahead_row(const char*& c, const char*& slope, const char*& given, int64_t step,
                                                                 int64_t second) {
  gemm_ahead_row<1>(c, step, second);
  if (slope) gemm_ahead_row<1>(slope, step, second);
  if (given) gemm_ahead_row<0>(given, step, second);
}

// One tile of R rows and V vectors. kRows: a row's words of A lie side by side (in place, or
// copied); otherwise the rows of one k do (transposed as stored, or packed so). kDoes: what it does meanwhile.
enum class GemmDoes { nothing, fetches, copies };
template <class Step, int R, int V, bool kRows, GemmDoes kDoes> static void gemm_tile(const GemmTile& t) {
  constexpr bool kCopies = kDoes == GemmDoes::copies;
  const float* b = t.b;
  const int64_t b_step = t.b_step;
  const int64_t last = t.cols - (V - 1) * kWidth;  // columns in the last vector
  GemmRows<R> a = gemm_rows<R>(t);
  Vec sum[R][V];
  gemm_sums_from<R, V>(t, last, sum);
  const char* ahead_row = t.ahead;
  float* copy_row = t.copy;
  int64_t rows_left = t.copy_rows;
  const int64_t ahead_step = t.ahead_step, ahead_second = t.ahead_second;
  // In registers: nothing of `t` is read in the loops.
  const char *line_c = t.lines.c, *line_slope = t.lines.slope, *line_given = t.lines.given;
  const int64_t line_step = t.lines.step, line_second = t.lines.second;
  int64_t lines = t.lines.rows;
  for (int64_t left = t.depth, group = t.ahead_group; left > 0; left -= group) {
    if (group > left) group = left;
    if (lines > 0) {
      --lines;
      gemm_ahead_row(line_c, line_slope, line_given, line_step, line_second);
    }
    const char* ahead = ahead_row;
    float* copy = copy_row;
    for (int64_t k = group; k > 0; --k) {
      Vec column[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) column[v] = load(b + v * kWidth);  // a mask would cost 1 %, also where it is cheap
      if (kCopies) {
        store(copy, load((const float*)ahead));
        ahead += 4 * kWidth;
        copy += kWidth;
      } else if (kDoes == GemmDoes::fetches) {
        __builtin_prefetch(ahead, 0, 2);
        if (kGemmAheadLines > 1) __builtin_prefetch(ahead + ahead_second, 0, 2);
        ahead += ahead_step;
      }
      gemm_step<Step, R, V, kRows>(a, column, sum);
      b += b_step;
    }
    if (!kCopies || --rows_left > 0) {
      ahead_row += t.ahead_row;
      if (kCopies) copy_row += t.copy_step;
    }
  }
  gemm_sums_to<Step, R, V>(t, last, sum);
}

// Four words of four rows, `step` bytes apart (`last` is the fourth), turned: into 4 columns of a panel.
typedef float GemmQuad __attribute__((vector_size(16)));
static inline GemmQuad gemm_quad(const char* p) {
  GemmQuad q;
  memcpy(&q, p, sizeof q);
  return q;
}
static inline __attribute__((always_inline)) void gemm_turn_quad(const char* src, const char* last, int64_t step, float* dst) {
  const GemmQuad r0 = gemm_quad(src), r1 = gemm_quad(src + step), r2 = gemm_quad(src + 2 * step), r3 = gemm_quad(last);
  const GemmQuad low = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), low2 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
  const GemmQuad high = __builtin_shufflevector(r0, r1, 2, 6, 3, 7), high2 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  const GemmQuad turned[4] = {
      __builtin_shufflevector(low, low2, 0, 1, 4, 5), __builtin_shufflevector(low, low2, 2, 3, 6, 7),
      __builtin_shufflevector(high, high2, 0, 1, 4, 5), __builtin_shufflevector(high, high2, 2, 3, 6, 7)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) memcpy(dst + i * kGemmTileCols, &turned[i], sizeof turned[i]);
}

// What a whole tile may pack for later while it computes, a step of K at a time: the next whole panel of B, of rows as they are
// used or of a transposed B, or the next tile, or group of tiles, of a transposed A.
enum class GemmPacks { b_rows, b_turned, a_tile, a_group };
// So many steps before it is taken up, a line is asked for; of a transposed B a panel before, too.
constexpr int64_t kGemmPackAhead = kWidth == 16 ? 32 : 48;

// B is turned in blocks of 4 x 4, two a step: four registers are enough, and the units for shuffles are idle. 16 words of four
// rows are finished at a time, so that rows that share cache sets do no harm; K is whole 16s of words.
// A's group is packed row by row, a piece every step or two, so that each of its lines is touched once.
template <class P, int R, bool kRows, GemmPacks kPacks> static void gemm_tile_packing(const GemmTile& t) {
  using Step = typename P::Step;
  using T = typename P::Element;
  const float* b = t.b;
  const int64_t b_step = t.b_step, step = t.ahead_row, ld = step / (int64_t)sizeof(T);
  GemmRows<R> a = gemm_rows<R>(t);
  Vec sum[R][2];
  gemm_sums_from<R, 2>(t, kWidth, sum);
  const char *src = t.ahead, *fourth = t.ahead + 3 * step;
  float* dst = t.copy;
  if constexpr (kPacks == GemmPacks::b_turned) {
    for (int64_t left = t.depth; left > 0; left -= 16) {
      for (int group = 0; group < 8; ++group) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const Vec column[2] = {load(b), load(b + kWidth)};
          __builtin_prefetch(src + half * step + 64, 0, 2);
          __builtin_prefetch((half ? fourth : src + 2 * step) + 64, 0, 2);
          __builtin_prefetch(src + (32 + half) * step, 0, 2);  // the panel after
          __builtin_prefetch(half ? fourth + 32 * step : src + 34 * step, 0, 2);
          gemm_turn_quad(src + 32 * half, fourth + 32 * half, step, dst + 8 * half * kGemmTileCols);
          gemm_step<Step, R, 2, kRows>(a, column, sum);
          gemm_turn_quad(src + 32 * half + 16, fourth + 32 * half + 16, step, dst + (8 * half + 4) * kGemmTileCols);
          b += b_step;
        }
        src += 4 * step;
        fourth += 4 * step;
        dst += 4;
      }
      src -= 32 * step - 64;
      fourth -= 32 * step - 64;
      dst += 15 * kGemmTileCols;
    }
  } else if constexpr (kPacks != GemmPacks::a_group) {
    const char* ahead = src + kGemmPackAhead * P::kPer * step;
    const int64_t count = kPacks == GemmPacks::a_tile ? t.pieces->count : kWidth;
    for (int64_t k = t.depth; k > 0; --k) {
      const Vec column[2] = {load(b), load(b + kWidth)};
      __builtin_prefetch(ahead, 0, 2);
      if (kGemmAheadLines > 1) __builtin_prefetch(ahead + (P::kPer == 2 ? step : 64), 0, 2);
      ahead += P::kPer * step;
      if (!kRows && kPacks == GemmPacks::b_rows) {  // the first tile of a share: none before has asked for its rows of A
        const char* later = a.at[0] + kGemmPackAhead / 2 * a.step;
        __builtin_prefetch(later);
        __builtin_prefetch(later + 4 * (R - 1));
      }
      const T* row = (const T*)src;
      if constexpr (kPacks == GemmPacks::a_tile) {
        store(dst, P::across(row, ld, true, count));
        dst += kGemmTileRows;
      } else {
        store(dst, P::across(row, ld, true, kWidth));
        store(dst + kWidth, P::across(row + kWidth, ld, true, kWidth));
        dst += kGemmTileCols;
      }
      gemm_step<Step, R, 2, kRows>(a, column, sum);
      b += b_step;
      src += P::kPer * step;
    }
  } else {
    const int64_t to_step = t.copy_step;
    const GemmPiece* pieces = t.pieces;
    const char* ahead = src + kGemmGroupAhead * P::kPer * step;
    int64_t left = t.depth;
    for (int64_t k = t.copy_rows; k > 0; --k) {
      float* to = dst;
      for (const GemmPiece* piece = pieces; piece < pieces + kGemmGroupTiles; ++piece) {
        __builtin_prefetch(ahead + piece->ahead, 0, 2);
        if (P::kPer == 2) __builtin_prefetch(ahead + piece->ahead + step, 0, 2);
        store(to, P::across((const T*)(src + piece->from), ld, true, piece->count));
        to += to_step;
#pragma GCC unroll 2
        for (int i = 0; i < kGemmPieceSteps; ++i) {
          const Vec column[2] = {load(b), load(b + kWidth)};
          gemm_step<Step, R, 2, kRows>(a, column, sum);
          b += b_step;
        }
      }
      src += P::kPer * step;
      ahead += P::kPer * step;
      dst += kGemmTileRows;
      left -= kGemmGroupTiles * kGemmPieceSteps;
    }
    for (; left > 0; --left) {
      const Vec column[2] = {load(b), load(b + kWidth)};
      gemm_step<Step, R, 2, kRows>(a, column, sum);
      b += b_step;
    }
  }
  gemm_sums_to<Step, R, 2>(t, kWidth, sum);
}

using GemmTileFn = void (*)(const GemmTile&);

// Every height has its own instance, so that a short last tile costs what its rows cost.
template <class Step, int V, bool kRows, GemmDoes kDoes = GemmDoes::fetches> static inline GemmTileFn gemm_tile_of(int64_t rows) {
#define MG_ROWS(r) &gemm_tile<Step, (r < kGemmTileRows ? r : kGemmTileRows), V, kRows, kDoes>
  static constexpr GemmTileFn table[12] = {MG_ROWS(1), MG_ROWS(2), MG_ROWS(3), MG_ROWS(4),  MG_ROWS(5),  MG_ROWS(6),
                                           MG_ROWS(7), MG_ROWS(8), MG_ROWS(9), MG_ROWS(10), MG_ROWS(11), MG_ROWS(12)};
#undef MG_ROWS
  return table[rows - 1];
}
// With nothing to fetch, a tile of AVX2 is better off without the two instructions of a step: with them it has four a cycle. The
// others ask for a line that is at hand.
constexpr GemmDoes kGemmIdle = kWidth == 8 ? GemmDoes::nothing : GemmDoes::fetches;
// Tiles that pack are the four highest, where words are in memory and registers are left; null otherwise.
constexpr int64_t kGemmPackingHeights = 4;
template <class P, bool kRows, GemmPacks kPacks> static inline GemmTileFn gemm_tile_packing_of(int64_t rows) {
  constexpr bool kEnough = kPacks == GemmPacks::b_turned ? kWidth == 16 : kWidth >= 8;
  if constexpr (P::kInMemory && kEnough && kGemmTileRows <= kWidth) {
    static constexpr GemmTileFn table[4] = {
        &gemm_tile_packing<P, kGemmTileRows - 3, kRows, kPacks>, &gemm_tile_packing<P, kGemmTileRows - 2, kRows, kPacks>,
        &gemm_tile_packing<P, kGemmTileRows - 1, kRows, kPacks>, &gemm_tile_packing<P, kGemmTileRows, kRows, kPacks>};
    return rows > kGemmTileRows - kGemmPackingHeights ? table[rows - (kGemmTileRows - 3)] : nullptr;
  }
  return nullptr;
}
template <class P> static inline GemmTileFn gemm_tile_packing_b(int64_t rows, bool trans_a, bool trans_b) {
  if (trans_a)
    return trans_b ? gemm_tile_packing_of<P, false, GemmPacks::b_turned>(rows) : gemm_tile_packing_of<P, false, GemmPacks::b_rows>(rows);
  return trans_b ? gemm_tile_packing_of<P, true, GemmPacks::b_turned>(rows) : gemm_tile_packing_of<P, true, GemmPacks::b_rows>(rows);
}
