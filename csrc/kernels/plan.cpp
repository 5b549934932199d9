// Plans of the kernels that are cut into stretches, rows or columns. The float64 reference is never cut.
#include "kernels/plan.h"

#include "kernels/tiles.h"

namespace mg {

namespace {
template <class T> int64_t product(const T& args) {
  int64_t n = 1;
  for (int32_t axis = 0; axis < args.dims; ++axis) n *= args.shape[axis];
  return n;
}
int64_t row_shares(int64_t rows, int64_t cols) { return shares_of(rows, rows_per_share(cols)); }
}  // namespace

#define MG_WIDE_PLAN(name, Args, shares)                              \
  Plan plan_##name(const Args<float>& args) { return {(shares), 0}; } \
  Plan plan_##name(const Args<double>&) { return {1, 0}; }
#define MG_PLAN(name, Args, shares) \
  MG_WIDE_PLAN(name, Args, shares)  \
  Plan plan_##name(const Args<bf16>& args) { return {(shares), 0}; }

MG_PLAN(embedding, EmbeddingArgs, row_shares(args.tokens, args.width))
MG_PLAN(embedding_backward, EmbeddingBackwardArgs, shares_of(args.width, kColumnBlock))
MG_PLAN(norm, NormArgs, row_shares(args.rows, args.cols))
MG_PLAN(norm_backward, NormBackwardArgs, row_shares(args.rows, args.cols))
MG_PLAN(norm_backward_weight, NormBackwardArgs, shares_of(args.cols, kColumnBlock))
MG_PLAN(act, ActArgs, shares_of(args.n, kGrain))
MG_PLAN(act_backward, ActArgs, shares_of(args.n, kGrain))
MG_PLAN(glu, GluArgs, shares_of(args.n, kGrain))
MG_PLAN(glu_backward, GluArgs, shares_of(args.n, kGrain))
MG_PLAN(rope, RopeArgs, row_shares(args.tokens, args.heads * args.head_dim))
MG_PLAN(kv_put, KvPutArgs, row_shares(args.tokens, args.heads * args.width))
MG_PLAN(softmax, SoftmaxArgs, row_shares(args.rows, args.cols))
MG_PLAN(softmax_backward, SoftmaxArgs, row_shares(args.rows, args.cols))
MG_PLAN(cross_entropy, CrossEntropyArgs, row_shares(args.rows, args.vocab))
MG_PLAN(dropout, DropoutArgs, shares_of(args.n, kGrain))
MG_PLAN(unary, UnaryArgs, shares_of(args.n, kGrain))
MG_PLAN(binary, BinaryArgs, shares_of(product(args), kGrain))
MG_PLAN(copy, CopyArgs, shares_of(product(args), kGrain))
MG_PLAN(reduce, ReduceArgs, shares_of(args.outer * args.inner, reduce_outputs(args.axis, args.inner)))
MG_PLAN(fill, FillArgs, shares_of(args.n, kGrain))
MG_PLAN(axpy, AxpyArgs, shares_of(args.n, kGrain))
MG_PLAN(peak, PeakArgs, args.shares)
MG_WIDE_PLAN(read, ReadArgs, shares_of(args.n, kReadGrain))
MG_WIDE_PLAN(sum_squares, SumSquaresArgs, shares_of(args.n, kNormChunk))
MG_WIDE_PLAN(adamw, AdamWArgs, shares_of(args.n, kGrain))
MG_WIDE_PLAN(sgd, SgdArgs, shares_of(args.n, kGrain))
#undef MG_PLAN
#undef MG_WIDE_PLAN

Plan plan_cast(const CastArgs<bf16>& args) { return {shares_of(args.n, kGrain), 0}; }

// Scalars out of short arrays: one share.
Plan plan_count_targets(const CountArgs<float>&) { return {1, 0}; }
Plan plan_count_targets(const CountArgs<double>&) { return {1, 0}; }
Plan plan_clip(const ClipArgs<float>&) { return {1, 0}; }
Plan plan_clip(const ClipArgs<double>&) { return {1, 0}; }

}  // namespace mg
