// What follows the sums (bias, activation, residual), and the product of a few rows with a transposed B.
struct GemmEpilogue {
  const float *bias, *residual;
  float *pre, *c;
  int64_t ldc;
  Act act;
  bool any;
};

static inline GemmEpilogue gemm_epilogue(const GemmArgs<float>& args, int64_t batch) {
  const int64_t at = batch * args.stride_c;
  return {args.bias, args.residual ? args.residual + at : nullptr, args.pre ? args.pre + at : nullptr, args.c + at,
          args.ldc, args.act, args.bias || args.residual || args.pre || args.act != Act::none};
}

template <bool kAct>
static void gemm_finish_as(const GemmEpilogue& e, const float* sums, int64_t step, int64_t row, int64_t rows, int64_t col,
                           int64_t cols) {
  const float *bias = e.bias, *residual = e.residual;
  float *pre = e.pre, *c = e.c;
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
      store_n(c + at, x, count);
    }
  }
}

// Sums of rows row .. row + rows and columns col .. col + cols go to C. The residual is read before C is written: they
// may be the same array. Without an activation its constants are not even loaded.
static inline void gemm_finish(const GemmEpilogue& e, const float* sums, int64_t step, int64_t row, int64_t rows,
                               int64_t col, int64_t cols) {
  if (e.act == Act::none) gemm_finish_as<false>(e, sums, step, row, rows, col, cols);
  else gemm_finish_as<true>(e, sums, step, row, rows, col, cols);
}

// Decode: a few rows times W (N, K) reads W once and does little else. kWidth rows of W are transposed in registers, so
// that lanes are columns of C and each keeps its own chain; nothing is packed.
// Registers: AVX-512 16 of W + 8 sums of 32; AVX2 8 + 4 of 16.
constexpr int64_t kGemmVectorRows = kWidth == 16 ? 8 : 4;

template <int R> static void gemm_vector_tile(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb,
                                              int64_t cols, int64_t depth, const float* start, int64_t start_step,
                                              float* out, int64_t out_step) {
  Vec sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = start ? load_n(start + r * start_step, cols) : zero();
  const int64_t last = cols - 1;  // missing rows of W read the last one again; their lanes are not stored
  int64_t k = 0;
  for (; k < depth; k += kWidth) {
    const int64_t now = depth - k < kWidth ? depth - k : kWidth;
    Vec block[kWidth];
    if (now == kWidth && cols == kWidth) {
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) block[c] = load(b + c * ldb + k);
    } else {
      for (int c = 0; c < kWidth; ++c) block[c] = load_n(b + (c < last ? c : last) * ldb + k, now);
    }
    gemm_transpose(block);
    const float* x = a + k * a_step;
    if (now == kWidth) {
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r] = fma(set1(x[r * a_row + i * a_step]), block[i], sum[r]);
      }
    } else {
      for (int i = 0; i < now; ++i) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r] = fma(set1(x[r * a_row + i * a_step]), block[i], sum[r]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store_n(out + r * out_step, sum[r], cols);
}

using GemmVectorFn = decltype(&gemm_vector_tile<1>);

static inline GemmVectorFn gemm_vector_tile_of(int64_t rows) {
#define MG_ROWS(r) &gemm_vector_tile<(r < kGemmVectorRows ? r : kGemmVectorRows)>
  static constexpr GemmVectorFn table[8] = {MG_ROWS(1), MG_ROWS(2), MG_ROWS(3), MG_ROWS(4),
                                            MG_ROWS(5), MG_ROWS(6), MG_ROWS(7), MG_ROWS(8)};
#undef MG_ROWS
  return table[rows - 1];
}

static void gemm_vectors(const GemmArgs<float>& args, const GemmBlock& block, int64_t batch) {
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t a_row = args.trans_a ? 1 : args.lda, a_step = args.trans_a ? args.lda : 1;
  const float* a = args.a + batch * args.stride_a + block.row_begin * a_row;
  const GemmEpilogue epilogue = gemm_epilogue(args, batch);
  alignas(64) float sums[kGemmVectorRows * kWidth];
  for (int64_t col = block.col_begin; col < block.col_end; col += kWidth) {
    const int64_t cols = block.col_end - col < kWidth ? block.col_end - col : kWidth;
    const float* b = args.b + batch * args.stride_b + col * args.ldb;
    float* c = args.c + batch * args.stride_c + block.row_begin * args.ldc + col;
    const float* start = args.accumulate ? c : nullptr;
    float* out = epilogue.any ? sums : c;
    const int64_t step = epilogue.any ? kWidth : args.ldc;
    gemm_vector_tile_of(rows)(a, a_row, a_step, b, args.ldb, cols, args.k, start, args.ldc, out, step);
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

static void gemm_wide(const GemmArgs<float>& args, const GemmBlock& block, int64_t batch) {
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t a_row = args.trans_a ? 1 : args.lda, a_step = args.trans_a ? args.lda : 1;
  const float* a = args.a + batch * args.stride_a + block.row_begin * a_row;
  const GemmEpilogue epilogue = gemm_epilogue(args, batch);
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
