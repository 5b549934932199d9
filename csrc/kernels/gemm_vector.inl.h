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

// Sums of rows row .. row + rows and columns col .. col + cols go to C. The residual is read before C is written: they
// may be the same array.
static void gemm_finish(const GemmEpilogue& e, const float* sums, int64_t step, int64_t row, int64_t rows, int64_t col,
                        int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (row + r) * e.ldc + col;
    for (int64_t j = 0; j < cols; j += kWidth) {
      const int64_t count = cols - j < kWidth ? cols - j : kWidth;
      Vec x = load_n(sums + r * step + j, count);
      if (e.bias) x = add(x, load_n(e.bias + col + j, count));
      if (e.pre) store_n(e.pre + at + j, x, count);
      if (e.act != Act::none) x = apply_act(e.act, x);
      if (e.residual) x = add(load_n(e.residual + at + j, count), x);
      store_n(e.c + at + j, x, count);
    }
  }
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
  float sums[kGemmVectorRows * kWidth];
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
