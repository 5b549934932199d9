// The list of kernels: adding one is a line here, its body in kernels/*.inl.h (named in a file of targets/parts/), its reference in ref/, its plan in plan.cpp.
#pragma once
#include "core/args.h"
#include "core/args_scan.h"

// X(name, Args): void name(const Args<T>&, const Share&), by the part of a target that has its body (targets/parts/). Those of
// MG_name exist for every element type; what follows a float32 or float64 master copy, losses and norms (MG_name_FULL) only
// for those; the conversion (MG_name_BF16) only for bf16.
#define MG_PARTS(X) X(basic) X(products) X(quantized) X(attention) X(scans) X(chunked)
#define MG_basic(X)                            \
  X(embedding, EmbeddingArgs)                  \
  X(embedding_backward, EmbeddingBackwardArgs) \
  X(norm, NormArgs)                            \
  X(norm_backward, NormBackwardArgs)           \
  X(norm_backward_weight, NormBackwardArgs)    \
  X(act, ActArgs)                              \
  X(act_backward, ActArgs)                     \
  X(glu, GluArgs)                              \
  X(glu_backward, GluArgs)                     \
  X(rope, RopeArgs)                            \
  X(softmax, SoftmaxArgs)                      \
  X(softmax_backward, SoftmaxArgs)             \
  X(cross_entropy, CrossEntropyArgs)           \
  X(dropout, DropoutArgs)                      \
  X(unary, UnaryArgs)                          \
  X(binary, BinaryArgs)                        \
  X(copy, CopyArgs)                            \
  X(reduce, ReduceArgs)                        \
  X(fill, FillArgs)                            \
  X(axpy, AxpyArgs)                            \
  X(peak, PeakArgs)
#define MG_basic_FULL(X)         \
  X(count_targets, CountArgs)    \
  X(sum_squares, SumSquaresArgs) \
  X(clip, ClipArgs)              \
  X(adamw, AdamWArgs)            \
  X(sgd, SgdArgs)                \
  X(read, ReadArgs)
#define MG_basic_BF16(X) \
  X(cast, CastArgs)
#define MG_products(X)                        \
  X(gemm, GemmArgs)                           \
  X(gemm_joined, JoinedGemmArgs)              \
  X(route, RouteArgs)                         \
  X(route_weights, RouteWeightsArgs)          \
  X(route_weights_backward, RouteWeightsArgs) \
  X(gather_rows, GatherArgs)                  \
  X(combine_rows, CombineArgs)                \
  X(combine_dot, CombineArgs)                 \
  X(grouped_linear, GroupedArgs)              \
  X(grouped_weight, GroupedWeightArgs)        \
  X(grouped_sum, GroupedWeightArgs)
#define MG_products_FULL(X)        \
  X(sort_experts, SortExpertsArgs)
#define MG_products_BF16(X)
#define MG_quantized(X)           \
  X(qrows, QRowsArgs)             \
  X(qgemm, QGemmArgs)             \
  X(qdequantize, QDequantizeArgs) \
  X(quantize, QuantizeArgs)       \
  X(kv_put, KvPutArgs)
#define MG_quantized_FULL(X) \
  X(qfit, QFitArgs)
#define MG_quantized_BF16(X)
#define MG_attention(X)                        \
  X(attention, AttentionArgs)                  \
  X(attention_backward, AttentionBackwardArgs)
#define MG_attention_FULL(X)
#define MG_attention_BF16(X)
#define MG_scans(X)                                     \
  X(selective_scan, ScanArgs)                           \
  X(selective_scan_backward, ScanBackwardArgs)          \
  X(causal_conv1d, ConvArgs)                            \
  X(causal_conv1d_backward, ConvBackwardArgs)           \
  X(linear_recurrence, RecurrenceArgs)                  \
  X(linear_recurrence_backward, RecurrenceBackwardArgs) \
  X(rg_lru, RgLruArgs)                                  \
  X(rg_lru_backward, RgLruBackwardArgs)
#define MG_scans_FULL(X)
#define MG_scans_BF16(X)
#define MG_chunked(X)                        \
  X(ssd, SsdArgs)                            \
  X(ssd_backward, SsdBackwardArgs)           \
  X(gated_delta, DeltaArgs)                  \
  X(gated_delta_backward, DeltaBackwardArgs) \
  X(rwkv7, Rwkv7Args)                        \
  X(rwkv7_backward, Rwkv7BackwardArgs)
#define MG_chunked_FULL(X)
#define MG_chunked_BF16(X)
#define MG_KERNELS(X) \
  MG_basic(X) MG_basic_FULL(X) MG_products(X) MG_products_FULL(X) \
  MG_quantized(X) MG_quantized_FULL(X) MG_attention(X) MG_attention_FULL(X) \
  MG_scans(X) MG_scans_FULL(X) MG_chunked(X) MG_chunked_FULL(X)
#define MG_BF16_KERNELS(X) \
  MG_basic(X) MG_basic_BF16(X) MG_products(X) MG_products_BF16(X) \
  MG_quantized(X) MG_quantized_BF16(X) MG_attention(X) MG_attention_BF16(X) \
  MG_scans(X) MG_scans_BF16(X) MG_chunked(X) MG_chunked_BF16(X)

namespace mg {

#define X(name, Args) void (*name)(const Args<T>&, const Share&);
template <class T> struct KernelTable {
  MG_KERNELS(X)
};
#undef X
#define X(name, Args) void (*name)(const Args<bf16>&, const Share&);
template <> struct KernelTable<bf16> {
  MG_BF16_KERNELS(X)
};
#undef X

}  // namespace mg
