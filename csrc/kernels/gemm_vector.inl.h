// What follows the sums (bias, activation, residual), and the product of a few rows with a transposed B.
template <class T> struct GemmEpilogue {
  const T *bias, *residual;
  T *pre, *c;
  float* sums;  // where C is as wide as the sums, C; else null
  int64_t ldc;
  Act act;
  bool any;     // the sums are not yet C
};

static inline float* gemm_sums(const GemmArgs<float>& args) { return args.c; }
static inline float* gemm_sums(const GemmArgs<bf16>& args) { return args.wide_c; }

template <class T> static inline GemmEpilogue<T> gemm_epilogue(const GemmArgs<T>& args, int64_t batch) {
  const int64_t at = batch * args.stride_c;
  float* sums = gemm_sums(args);
  return {args.bias, args.residual ? args.residual + at : nullptr, args.pre ? args.pre + at : nullptr,
          args.c ? args.c + at : nullptr, sums ? sums + at : nullptr, args.ldc, args.act,
          args.bias || args.residual || args.pre || args.act != Act::none || !sums};
}

template <bool kAct, class T>
static void gemm_finish_as(const GemmEpilogue<T>& e, const float* sums, int64_t step, int64_t row, int64_t rows, int64_t col,
                           int64_t cols) {
  const T *bias = e.bias, *residual = e.residual;
  T *pre = e.pre, *c = e.c;
  float* wide = kNarrow<T> ? e.sums : nullptr;
  const int64_t ldc = e.ldc;
  for (int64_t j = 0; j < cols; j += kWidth) {
    const int64_t count = cols - j < kWidth ? cols - j : kWidth;
    const Vec shift = bias ? load_n(bias + col + j, count) : zero();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (row + r) * ldc + col + j;
      Vec x = load_n(sums + r * step + j, count);
      if (bias) x = add(x, shift);
      if (pre) store_n(pre + at, x, count);
      if (kAct) x = apply_act(e.act, x);
      if (residual) x = add(load_n(residual + at, count), x);
      if (kNarrow<T> && wide) store_n(wide + at, x, count);
      else store_n(c + at, x, count);
    }
  }
}

// Sums of rows row .. row + rows and columns col .. col + cols go to C. The residual is read before C is written: they
// may be the same array. Without an activation its constants are not even loaded.
template <class T>
static inline void gemm_finish(const GemmEpilogue<T>& e, const float* sums, int64_t step, int64_t row, int64_t rows,
                               int64_t col, int64_t cols) {
  if (e.act == Act::none) gemm_finish_as<false>(e, sums, step, row, rows, col, cols);
  else gemm_finish_as<true>(e, sums, step, row, rows, col, cols);
}

// Decode: a few rows times W (N, K) reads W once and does little else. kWidth rows of W are transposed in registers, so
// that lanes are columns of C and each keeps its own chain; nothing is packed.
// Registers: AVX-512 16 of W + 8 sums of 32, NEON 4 + 8; AVX2 8 + 4 of 16.
constexpr int64_t kGemmVectorRows = kRegisters == 32 ? 8 : 4;

template <class P, int R>
static void gemm_vector_tile(const typename P::Element* a, int64_t a_row, int64_t a_step, const typename P::Element* b,
                             int64_t ldb, int64_t cols, int64_t depth, const float* start, int64_t start_step, float* out,
                             int64_t out_step) {
  Vec sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = start ? load_n(start + r * start_step, cols) : zero();
  const int64_t last = cols - 1;  // missing rows of W read the last one again; their lanes are not stored
  constexpr int64_t kBlock = kWidth * P::kPer;  // elements of K
  for (int64_t k = 0; k < depth; k += kBlock) {
    const int64_t now = depth - k < kBlock ? depth - k : kBlock;
    Vec block[kWidth];
    if (now == kBlock && cols == kWidth) {
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) block[c] = P::along(b + c * ldb + k);
    } else {
      for (int c = 0; c < kWidth; ++c) block[c] = P::along_n(b + (c < last ? c : last) * ldb + k, now);
    }
    gemm_transpose(block);
    const typename P::Element* x = a + k * a_step;
    if (now == kBlock) {
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          sum[r] = P::Step::step(set1(P::word(x + r * a_row + i * P::kPer * a_step, a_step, true)), block[i], sum[r]);
      }
    } else {
      for (int i = 0; i * P::kPer < now; ++i) {
        const bool more = i * P::kPer + 1 < now;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          sum[r] = P::Step::step(set1(P::word(x + r * a_row + i * P::kPer * a_step, a_step, more)), block[i], sum[r]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store_n(out + r * out_step, sum[r], cols);
}

template <class P> using GemmVectorFn = decltype(&gemm_vector_tile<P, 1>);

template <class P> static inline GemmVectorFn<P> gemm_vector_tile_of(int64_t rows) {
#define MG_ROWS(r) &gemm_vector_tile<P, (r < kGemmVectorRows ? r : kGemmVectorRows)>
  static constexpr GemmVectorFn<P> table[8] = {MG_ROWS(1), MG_ROWS(2), MG_ROWS(3), MG_ROWS(4),
                                            MG_ROWS(5), MG_ROWS(6), MG_ROWS(7), MG_ROWS(8)};
#undef MG_ROWS
  return table[rows - 1];
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
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t a_row = args.trans_a ? 1 : args.lda, a_step = args.trans_a ? args.lda : 1;
  const T* a = args.a + batch * args.stride_a + block.row_begin * a_row;
  const GemmEpilogue<T> epilogue = gemm_epilogue(args, batch);
  alignas(64) float sums[kGemmVectorRows * kWidth];
  for (int64_t col = block.col_begin; col < block.col_end; col += kWidth) {
    const int64_t cols = block.col_end - col < kWidth ? block.col_end - col : kWidth;
    const T* b = args.b + batch * args.stride_b + col * args.ldb;
    const int64_t at = block.row_begin * args.ldc + col;
    float* c = epilogue.sums ? epilogue.sums + at : nullptr;
    float* out = epilogue.any ? sums : c;
    const int64_t step = epilogue.any ? kWidth : args.ldc;
    const float* start = args.accumulate ? c : nullptr;
    if (args.accumulate && !c) {
      gemm_widen(epilogue.c + at, args.ldc, rows, cols, sums, kWidth);
      start = sums;
    }
    gemm_vector_tile_of<P>(rows)(a, a_row, a_step, b, args.ldb, cols, args.k, start, c ? args.ldc : kWidth, out, step);
    if (epilogue.any) gemm_finish(epilogue, sums, kWidth, block.row_begin, rows, col, cols);
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
