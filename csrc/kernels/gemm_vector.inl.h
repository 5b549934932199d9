// What follows the sums (bias, activation, residual, or a factor), and the product of a few rows with a transposed B.
template <class T> struct GemmEpilogue {
  const T *bias, *residual, *factor;
  T *slope, *c;
  float* sums;  // where C is as wide as the sums, C; else null
  int64_t ldc;
  Act act;
  bool any;  // the sums are not yet C
};

static inline float* gemm_sums(const GemmArgs<float>& args) { return args.c; }
static inline float* gemm_sums(const GemmArgs<bf16>& args) { return args.wide_c; }

template <class T> static inline GemmEpilogue<T> gemm_epilogue(const GemmArgs<T>& args, int64_t batch) {
  const int64_t at = batch * args.stride_c;
  float* sums = gemm_sums(args);
  return {args.bias, args.residual ? args.residual + at : nullptr, args.factor ? args.factor + at : nullptr,
          args.slope ? args.slope + at : nullptr, args.c ? args.c + at : nullptr, sums ? sums + at : nullptr, args.ldc, args.act,
          args.bias || args.residual || args.factor || args.slope || args.act != Act::none || !sums};
}

// Sums of rows row .. row + rows and columns col .. col + cols go to C. The residual is read before C is written: they
// may be the same array. One loop for each activation: a choice inside it would load all their constants.
template <class T>
static void gemm_finish(const GemmEpilogue<T>& e, const float* sums, int64_t step, int64_t row, int64_t rows, int64_t col,
                        int64_t cols) {
  with_act(e.act, [&](auto kind) {
    // Here, or they are read again from what the lambda refers to after every store.
    const T *bias = e.bias ? e.bias + col : nullptr, *residual = e.residual, *factor = e.factor;
    T *slope = e.slope, *c = e.c;
    float* wide = kNarrow<T> ? e.sums : nullptr;
    const float* const of = sums;
    const int64_t ldc = e.ldc, height = rows, width = cols, of_step = step;
    for (int64_t r = 0; r < height; ++r) {
      const int64_t at = (row + r) * ldc + col;
      each_vec(0, width, [&](int64_t j, auto part) {
        Vec x = get(of + r * of_step + j, part);
        if (bias) x = add(x, get(bias + j, part));
        if (factor) x = mul(x, get(factor + at + j, part));
        const ActPair pair = act_pair<kNarrow<T>>(kind.value, x);  // one exponential serves both
        if (slope) put(slope + at + j, pair.slope, part);
        x = pair.value;
        if (residual) x = add(get(residual + at + j, part), x);
        if (kNarrow<T> && wide) put(wide + at + j, x, part);
        else put(c + at + j, x, part);
      });
    }
  });
}

// Decode: a few rows times W (N, K) reads W once and does little else. kWidth rows of W are transposed in registers, so
// that lanes are columns of C and each keeps its own chain; nothing is packed.
// Registers, with W in halves: AVX-512 8 of W + 12 sums of 32, and what a transpose takes; AVX2 4 + 6 of 16.
constexpr int64_t kGemmVectorRows = kGemmTileRows;
// Pairs do two steps in one, so that packing is worth it from fewer rows on.
template <class P> static inline int64_t gemm_vector_rows() { return P::kPer == 1 ? kGemmVectorRows : 8; }
// From this many rows on fma are what takes long, and W comes in halves; before, fewer loads are better.
constexpr int kGemmHalvesRows = 4;
// W is fetched into L2 while the columns before are computed, in the order in which it lies in memory: its rows are in pages
// of their own, where the hardware does not look ahead. Two groups of columns must fit there.
constexpr int64_t kGemmAheadBytes = 512 * 1024;
// A fetch is dropped where as many are under way as the processor follows (on Zen 4 a loop of nothing else goes through memory
// at ten times its speed). So they are spread out, one beside each step, and every line is asked for again, in the order of
// use, this many bytes before it is read. A third time (soon, then near) is worth 0 to 10 % where no cache holds the weight,
// and costs 15 % where one does.
// Where the last cache is far (gemm_far_caches) a fetch into L1, once and soon, is the fastest wherever the weight lies, but for
// short rows, which are better off with one into L2 before; on Zen 4 fetches into L1 take twice as long.
constexpr int64_t kGemmSoonBytes = 768, kGemmOnceBytes = 384, kGemmNearBytes = 256, kGemmFarBytes = 512, kGemmShortRow = 3072;
constexpr int64_t kGemmTwiceBytes = 16 << 20;

struct GemmVectorTile {
  int64_t lda, ldb, cols, depth, start_step, out_step;
  const char* ahead;    // what to fetch, as much as is read
  int64_t over;         // bytes from the end of a row of W to where its lane is read next
  const float* start;   // sums start from here, or from zero when null
  float* out;
};

// The chain from k on, where K or the columns are not whole vectors.
template <class P, int R>
static __attribute__((noinline)) void gemm_vector_rest(const GemmVectorTile& t, const typename P::Element* a, const typename P::Element* b,
                                         int64_t k, const float* start, int64_t start_step) {
  constexpr int64_t kBlock = kWidth * P::kPer;  // elements of K
  Vec sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = start ? load_n(start + r * start_step, t.cols) : zero();
  const int64_t last = t.cols - 1;  // missing rows of W read the last one again; their lanes are not stored
  for (; k < t.depth; k += kBlock) {
    const int64_t now = t.depth - k < kBlock ? t.depth - k : kBlock;
    Vec block[kWidth];
#pragma GCC unroll 16
    for (int c = 0; c < kWidth; ++c) block[c] = P::along_n(b + (c < last ? c : last) * t.ldb + k, now);
    gemm_transpose(block);
    for (int i = 0; i * P::kPer < now; ++i) {
      const bool more = i * P::kPer + 1 < now;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r] = P::Step::step(set1(P::word(a + r * t.lda + k + i * P::kPer, more)), block[i], sum[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store_n(t.out + r * t.out_step, sum[r], t.cols);
}

// Pointers to each fourth row: the rows between are within reach of an address, and sixteen pointers are not to be had.
template <int kCount> MG_INLINE void gemm_each_fourth(const char* first, int64_t step, const char** out) {
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i, first += 4 * step) {
    out[i] = first;
    asm("" : "+r"(out[i]));
  }
}

// `once`: a line is asked for into L2 long before and near; `twice`: soon, too; `direct`: soon, into L1; `both`: long before, too.
enum class GemmFetch { once, twice, direct, both };

template <class P, int R, GemmFetch kFetch>
static void gemm_vector_tile(const GemmVectorTile& t, const typename P::Element* a, const typename P::Element* b) {
  using T = typename P::Element;
  constexpr int64_t kBlock = kWidth * P::kPer, kBytes = kBlock * (int64_t)sizeof(T);
  constexpr int kLines = kWidth * kBytes > 64 ? kWidth * kBytes / 64 : 1;  // of memory in a block
  constexpr int kFours = (kLines + 3) / 4;
  constexpr bool kTwice = kFetch == GemmFetch::twice, kFar = kFetch == GemmFetch::direct || kFetch == GemmFetch::both;
  constexpr int64_t kLast = kFar ? kGemmFarBytes : kTwice || R >= kGemmHalvesRows ? kGemmNearBytes : kGemmOnceBytes;
  const int64_t a_step = t.lda * (int64_t)sizeof(T), w_step = t.ldb * (int64_t)sizeof(T);
  const int64_t row_bytes = t.depth * (int64_t)sizeof(T);
  if (t.cols < kWidth) {
    gemm_vector_rest<P, R>(t, a, b, 0, t.start, t.start_step);
    return;
  }
  // Halves touch a row's cache line twice, which rows that share cache sets do not survive.
  const bool halves = P::kInMemory && R >= kGemmHalvesRows && w_step % 2048 != 0;
  const char* ahead = t.ahead;
  Vec sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = t.start ? load(t.start + r * t.start_step) : zero();
  int64_t k = 0;
  for (; k + kBlock <= t.depth; k += kBlock, ahead += kWidth * kBytes) {
    const T* x = a + k;
    int64_t b_step = w_step;
    asm("" : "+r"(b_step));  // or its multiples are kept, more of them than there are registers
    const char* words[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) words[i] = (const char*)x + (3 * i < R ? 3 * i * a_step : 0);
    // Rows whose lines are asked for now: all of them, or in turns where a line is several blocks.
    const char* const lines = (const char*)b + k / kBlock % (kWidth / kLines) * kLines * b_step;
    const auto later = [&](int64_t bytes) MG_ALWAYS {
      const int64_t at = k * (int64_t)sizeof(T) + bytes;
      return lines + (at < row_bytes ? at : at + t.over);
    };
    const char *soon[kFours], *near[kFours];
    if (kTwice) gemm_each_fourth<kFours>(later(kGemmSoonBytes), b_step, soon);
    gemm_each_fourth<kFours>(later(kLast), b_step, near);
    const auto step = [&](int i, Vec column) MG_ALWAYS {
      if (i < kLines) {
        if (kFetch != GemmFetch::direct) __builtin_prefetch(ahead + 64 * i, 0, 2);
        if (kTwice) __builtin_prefetch(soon[i / 4] + i % 4 * b_step, 0, 2);
        __builtin_prefetch(near[i / 4] + i % 4 * b_step, 0, kFar ? 3 : 2);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec word = P::kInMemory ? gemm_word(words[r / 3] + r % 3 * a_step + 4 * i)
                                      : set1(P::word(x + r * t.lda + i * P::kPer, true));
        sum[r] = P::Step::step(word, column, sum[r]);
      }
    };
    if (R >= kGemmHalvesRows && halves) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        Vec half[kWidth / 2];
        gemm_turn_half((const char*)(b + k) + h * kWidth * 2, b_step, half);
#pragma GCC unroll 8
        for (int i = 0; i < kWidth / 2; ++i) step(h * kWidth / 2 + i, half[i]);
      }
    } else {
      const char* four[kWidth / 4];
      gemm_each_fourth<kWidth / 4>((const char*)(b + k), b_step, four);
      Vec block[kWidth];
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) block[c] = P::along((const T*)(four[c / 4] + c % 4 * b_step));
      if constexpr (R < kGemmHalvesRows) gemm_transpose_here(block);
      else gemm_transpose(block);  // the sums have the registers
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) step(i, block[i]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store(t.out + r * t.out_step, sum[r]);
  if (k < t.depth) gemm_vector_rest<P, R>(t, a, b, k, t.out, t.out_step);
}

template <class P> using GemmVectorFn = decltype(&gemm_vector_tile<P, 1, GemmFetch::once>);

template <class P> static inline GemmVectorFn<P> gemm_vector_tile_of(int64_t rows, int64_t row_bytes, bool large) {
  static_assert(kGemmHalvesRows == 4);
  static constexpr GemmVectorFn<P> twice[3] = {&gemm_vector_tile<P, 1, GemmFetch::twice>, &gemm_vector_tile<P, 2, GemmFetch::twice>,
                                               &gemm_vector_tile<P, 3, GemmFetch::twice>};
#define MG_ROW(r, fetch) &gemm_vector_tile<P, (r < kGemmVectorRows ? r : kGemmVectorRows), GemmFetch::fetch>
#define MG_ROWS(f) \
  {MG_ROW(1, f), MG_ROW(2, f), MG_ROW(3, f), MG_ROW(4, f),  MG_ROW(5, f),  MG_ROW(6, f), \
   MG_ROW(7, f), MG_ROW(8, f), MG_ROW(9, f), MG_ROW(10, f), MG_ROW(11, f), MG_ROW(12, f)}
  static constexpr GemmVectorFn<P> once[12] = MG_ROWS(once), direct[12] = MG_ROWS(direct), both[12] = MG_ROWS(both);
#undef MG_ROWS
#undef MG_ROW
  if (gemm_far_caches) return (row_bytes < kGemmShortRow ? both : direct)[rows - 1];
  return large && rows < kGemmHalvesRows ? twice[rows - 1] : once[rows - 1];
}

// The tile of C, widened to `sums`, from which an accumulating product starts.
template <class T>
static inline void gemm_widen(const T* c, int64_t ldc, int64_t rows, int64_t cols, float* sums, int64_t step) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < cols; j += kWidth)
      store_n(sums + r * step + j, load_n(c + r * ldc + j, cols - j < kWidth ? cols - j : kWidth),
              cols - j < kWidth ? cols - j : kWidth);
}

template <class P>
static void gemm_vectors(const GemmArgs<typename P::Element>& args, const GemmBlock& block, int64_t batch) {
  using T = typename P::Element;
  const int64_t rows = block.row_end - block.row_begin, step = kWidth * args.ldb, row_bytes = args.ldb * (int64_t)sizeof(T);
  const bool contiguous = args.ldb == args.k && kWidth * row_bytes <= kGemmAheadBytes;
  const auto tile = gemm_vector_tile_of<P>(rows, row_bytes, args.n * row_bytes >= kGemmTwiceBytes);
  const T* a = args.a + batch * args.stride_a + block.row_begin * args.lda;
  const GemmEpilogue<T> epilogue = gemm_epilogue(args, batch);
  alignas(64) float sums[kGemmVectorRows * kWidth];
  GemmVectorTile t;
  t.lda = args.lda, t.ldb = args.ldb, t.depth = args.k;
  for (int64_t col = block.col_begin; col < block.col_end; col += kWidth) {
    t.cols = block.col_end - col < kWidth ? block.col_end - col : kWidth;
    const T* b = args.b + batch * args.stride_b + col * args.ldb;
    const bool more = col + 2 * kWidth <= args.n;
    t.ahead = (const char*)(contiguous && more ? b + step : b);
    t.over = ((more ? step : 0) - args.k) * (int64_t)sizeof(T);
    const int64_t at = block.row_begin * args.ldc + col;
    float* c = epilogue.sums ? epilogue.sums + at : nullptr;
    t.start = args.accumulate ? c : nullptr;
    t.start_step = args.ldc;
    if (args.accumulate && !c) {
      gemm_widen(epilogue.c + at, args.ldc, rows, t.cols, sums, kWidth);
      t.start = sums;
      t.start_step = kWidth;
    }
    t.out = epilogue.any ? sums : c;
    t.out_step = epilogue.any ? kWidth : args.ldc;
    tile(t, a, b);
    if (epilogue.any) gemm_finish(epilogue, sums, kWidth, block.row_begin, rows, col, t.cols);
  }
}

// A few rows times a wide row-major B: B is read along its rows, four at a time, because each row may lie in pages of its
// own; the sums wait in L1 (4 rows x 512 columns, 8 KiB, beside four stretches of B of as much).
constexpr int64_t kGemmWideRows = 4;
constexpr int64_t kGemmWideCols = 512;
// Two to four rows are better off in tiles as long as B comes from a cache: 16 MiB measured.
constexpr int64_t kGemmWideFloats = 1 << 22;

static inline bool gemm_is_wide(const GemmArgs<float>& args, int64_t rows, int64_t cols) {
  if (rows == 1) return cols > kGemmTileCols;
  return rows <= kGemmWideRows && args.k * args.ldb >= kGemmWideFloats;
}

static inline void gemm_wide_step(float* sums, const float* const* b, const float* x, int64_t x_step, int64_t steps,
                                  int64_t cols) {
  if (steps == 4) {
    const Vec x0 = set1(x[0]), x1 = set1(x[x_step]), x2 = set1(x[2 * x_step]), x3 = set1(x[3 * x_step]);
    for (int64_t j = 0; j < cols; j += kWidth) {
      const int64_t count = cols - j < kWidth ? cols - j : kWidth;
      Vec sum = load(sums + j);
      sum = fma(x0, load_n(b[0] + j, count), sum);
      sum = fma(x1, load_n(b[1] + j, count), sum);
      sum = fma(x2, load_n(b[2] + j, count), sum);
      sum = fma(x3, load_n(b[3] + j, count), sum);
      store(sums + j, sum);
    }
    return;
  }
  for (int64_t s = 0; s < steps; ++s) {
    for (int64_t j = 0; j < cols; j += kWidth) {
      const int64_t count = cols - j < kWidth ? cols - j : kWidth;
      store(sums + j, fma(set1(x[s * x_step]), load_n(b[s] + j, count), load(sums + j)));
    }
  }
}

static inline void gemm_wide(const GemmArgs<float>& args, const GemmBlock& block, int64_t batch) {
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t a_row = args.trans_a ? 1 : args.lda, a_step = args.trans_a ? args.lda : 1;
  const float* a = args.a + batch * args.stride_a + block.row_begin * a_row;
  const GemmEpilogue<float> epilogue = gemm_epilogue(args, batch);
  alignas(64) float sums[kGemmWideRows][kGemmWideCols];
  for (int64_t strip = block.col_begin; strip < block.col_end; strip += kGemmWideCols) {
    const int64_t cols = block.col_end - strip < kGemmWideCols ? block.col_end - strip : kGemmWideCols;
    const float* b = args.b + batch * args.stride_b + strip;
    for (int64_t r = 0; r < rows; ++r) {
      const float* start = epilogue.c + (block.row_begin + r) * args.ldc + strip;
      for (int64_t j = 0; j < cols; j += kWidth) {
        const int64_t count = cols - j < kWidth ? cols - j : kWidth;
        store(sums[r] + j, args.accumulate ? load_n(start + j, count) : zero());
      }
    }
    for (int64_t k = 0; k < args.k; k += 4) {
      const int64_t steps = args.k - k < 4 ? args.k - k : 4;
      const float* lines[4];
      for (int64_t s = 0; s < steps; ++s) lines[s] = b + (k + s) * args.ldb;
      for (int64_t r = 0; r < rows; ++r) gemm_wide_step(sums[r], lines, a + r * a_row + k * a_step, a_step, steps, cols);
    }
    gemm_finish(epilogue, sums[0], kGemmWideCols, block.row_begin, rows, strip, cols);
  }
}
