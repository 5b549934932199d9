// Products of the same few rows with several weights: each share's stretch of all columns, weight by weight.

// part(args, block): a block of the product with one weight.
template <class T, class Part> static inline void gemm_joined_of(const JoinedGemmArgs<T>& args, const Share& share, const Part& part) {
  int64_t before = 0, all = 0;
  for (int32_t i = 0; i < args.count; ++i) all += joined_units(args.weights[i].n);
  for (int32_t i = 0; i < args.count; ++i) {
    const auto& weight = args.weights[i];
    const JoinedRange range = joined_range(joined_units(weight.n), before, all, share.index, share.count);
    before += joined_units(weight.n);
    if (range.begin == range.end) continue;
    GemmArgs<T> one = {};
    one.a = args.a, one.b = weight.b, one.c = weight.c, one.bias = weight.bias;
    one.m = args.m, one.n = one.ldc = weight.n, one.k = one.lda = one.ldb = args.k;
    one.batch = 1, one.trans_b = 1;
    part(one, GemmBlock{0, 1, 0, args.m, range.begin * 32, range.end * 32 < weight.n ? range.end * 32 : weight.n});
  }
}

// Where tiles have fewer rows, those of a panel of columns follow each other, while it is in the cache.
template <class P> static void gemm_joined_vectors(const JoinedGemmArgs<typename P::Element>& args, const Share& share) {
  gemm_joined_of(args, share, [](const auto& one, const GemmBlock& block) {
    constexpr int64_t kRows = kGemmVectorRows;
    if (one.m <= kRows) return gemm_vectors<P>(one, block, 0);
    for (int64_t col = block.col_begin; col < block.col_end; col += 32) {
      for (int64_t row = 0; row < one.m; row += kRows) {
        const GemmBlock part = {0, 1, row, at_most(row + kRows, one.m), col, at_most(col + 32, block.col_end)};
        gemm_vectors<P>(one, part, 0);
      }
    }
  });
}
