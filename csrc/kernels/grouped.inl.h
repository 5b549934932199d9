// Products over groups of rows (experts), each with a weight of its own: the tiles of gemm.inl.h on each group in turn, so
// that an element is one chain of fma over k and a row has the same bits whatever its neighbours are.
// `part` computes a block of a product: gemm_part<P>, or amx_block.
template <class T> using GemmPartFn = void (*)(const GemmArgs<T>&, const GemmBlock&, int64_t, const GemmGrid&, void*);

// C[r] (+)= A[r] op(B[e]) + bias[e]. Shares: stretches of units (grouped_tiles.h).
template <class T> static void grouped_rows(const GroupedArgs<T>& args, const Share& share, GemmPartFn<T> part) {
  const GroupedGrid grid = grouped_grid(args.rows, args.n, args.k, args.experts);
  const int64_t units = grid.blocks * grid.col_blocks;
  const int64_t begin = units * share.index / grid.shares, end = units * (share.index + 1) / grid.shares;
  GemmArgs<T> gemm = {};
  gemm.k = gemm.lda = args.k, gemm.ldb = args.trans_b ? args.k : args.n, gemm.ldc = args.n;
  gemm.batch = 1, gemm.trans_b = args.trans_b, gemm.accumulate = args.accumulate, gemm.act = Act::none;
  int64_t unit = 0;
  for (int64_t e = 0; e < args.experts && unit < end; ++e) {
    const int64_t first = args.offsets[e], count = args.offsets[e + 1] - first;
    const int64_t blocks = (count + kGroupRows - 1) / kGroupRows;
    for (int64_t u = begin > unit ? begin - unit : 0; u < blocks * grid.col_blocks && unit + u < end; ++u) {
      const int64_t block = u / grid.col_blocks, col = u % grid.col_blocks * grid.cols;
      const int64_t row = first + block * count / blocks;  // blocks of even size
      gemm.m = first + (block + 1) * count / blocks - row;
      gemm.n = args.n - col < grid.cols ? args.n - col : grid.cols;
      gemm.a = args.a + row * args.k;
      gemm.b = args.b + e * args.n * args.k + (args.trans_b ? col * args.k : col);
      gemm.c = args.c ? args.c + row * args.n + col : nullptr;
      gemm.wide_c = args.wide_c ? args.wide_c + row * args.n + col : nullptr;
      gemm.bias = args.bias ? args.bias + e * args.n + col : nullptr;
      part(gemm, {0, 1, 0, gemm.m, 0, gemm.n}, 0, grouped_unit(gemm.m, gemm.n), share.scratch);
    }
    unit += blocks * grid.col_blocks;
  }
}

// C[e] (+)= a^T b over the rows of e. Shares: blocks of C of one expert, or a few whole experts.
template <class T> static void grouped_columns(const GroupedWeightArgs<T>& args, const Share& share, GemmPartFn<T> part) {
  const GemmGrid grid = grouped_weight_grid(args.rows, args.m, args.n, args.experts);
  const GemmBlock block = gemm_block(grid, share.index, args.m, args.n, args.experts);
  GemmArgs<T> gemm = {};
  gemm.m = gemm.lda = args.m, gemm.n = gemm.ldb = gemm.ldc = args.n;
  gemm.batch = 1, gemm.trans_a = 1, gemm.accumulate = args.accumulate, gemm.act = Act::none;
  for (int64_t e = block.batch_begin; e < block.batch_end; ++e) {
    const int64_t first = args.offsets[e];
    gemm.k = args.offsets[e + 1] - first;
    if (gemm.k == 0 && args.accumulate) continue;
    gemm.a = args.a + first * args.m;
    gemm.b = args.b + first * args.n;
    gemm.c = args.c ? args.c + e * args.m * args.n : nullptr;
    gemm.wide_c = args.wide_c ? args.wide_c + e * args.m * args.n : nullptr;
    part(gemm, block, 0, grid, share.scratch);
  }
}
