// Included inside a target's namespace, after its vectors: every body once, then the table.
namespace {
#include "simd/dot.h"
#include "simd/math.h"
//
#include "kernels/elementwise.inl.h"
#include "kernels/norm.inl.h"
#include "kernels/token.inl.h"
#include "kernels/optim.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/grouped.inl.h"
#include "kernels/routing.inl.h"
#include "kernels/qgemm.inl.h"
#include "kernels/qrows.inl.h"
#include "kernels/kv_put.inl.h"
#include "kernels/attention.inl.h"
#include "kernels/scan.inl.h"
#include "kernels/scan_backward.inl.h"
#include "kernels/conv.inl.h"
#include "kernels/recurrence.inl.h"
#include "kernels/chunk_product.inl.h"
#include "kernels/ssd.inl.h"
#include "kernels/ssd_backward.inl.h"
#include "kernels/delta.inl.h"
#include "kernels/delta_backward.inl.h"
#include "kernels/rwkv.inl.h"
#include "kernels/peak.inl.h"
#include "kernels/read.inl.h"

static void gemm(const GemmArgs<float>& args, const Share& share) { gemm_of<FloatWords<float>>(args, share); }
static void gemm(const GemmArgs<bf16>& args, const Share& share) { gemm_of<FloatWords<bf16>>(args, share); }
template <class T> static void grouped_linear(const GroupedArgs<T>& args, const Share& share) {
  grouped_rows(args, share, &gemm_part<FloatWords<T>>);
}
template <class T> static void grouped_weight(const GroupedWeightArgs<T>& args, const Share& share) {
  grouped_columns(args, share, &gemm_part<FloatWords<T>>);
}
template <class T> static void attention(const AttentionArgs<T>& args, const Share& share) {
  attention_of<AttentionWords<T>>(args, share);
}
template <class T> static void attention_backward(const AttentionBackwardArgs<T>& args, const Share& share) {
  attention_backward_of<AttentionWords<T>>(args, share);
}
static void peak(const PeakArgs<float>& args, const Share& share) { args.y[share.index] = peak_mean<FmaChain>(); }
static void peak(const PeakArgs<bf16>& args, const Share& share) { args.y[share.index] = peak_mean<FmaChain>(); }
}  // namespace

#define X(name, Args) &name,
const KernelTable<float>* table() {
  static const KernelTable<float> kernels = {MG_KERNELS(X)};
  return &kernels;
}
const KernelTable<bf16>* table_bf16() {
  static const KernelTable<bf16> kernels = {MG_BF16_KERNELS(X)};
  return &kernels;
}
#undef X
