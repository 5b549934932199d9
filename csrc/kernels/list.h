// The list of kernels: adding one is a line here, its body in kernels/*.inl.h, its reference in ref/, its plan in plan.cpp.
#pragma once
#include "core/args.h"
#include "core/args_scan.h"

// X(name, Args): void name(const Args<T>&, const Share&). These exist for every element type; what follows a float32 or
// float64 master copy, losses and norms, only for those; the conversion only for bf16.
#define MG_STORED_KERNELS(X)                           \
  X(gemm, GemmArgs)                                    \
  X(embedding, EmbeddingArgs)                          \
  X(embedding_backward, EmbeddingBackwardArgs)         \
  X(route, RouteArgs)                                  \
  X(route_weights, RouteWeightsArgs)                   \
  X(route_weights_backward, RouteWeightsArgs)          \
  X(gather_rows, GatherArgs)                           \
  X(combine_rows, CombineArgs)                         \
  X(combine_dot, CombineArgs)                          \
  X(grouped_linear, GroupedArgs)                       \
  X(grouped_weight, GroupedWeightArgs)                 \
  X(grouped_sum, GroupedWeightArgs)                    \
  X(norm, NormArgs)                                    \
  X(norm_backward, NormBackwardArgs)                   \
  X(norm_backward_weight, NormBackwardArgs)            \
  X(act, ActArgs)                                      \
  X(act_backward, ActArgs)                             \
  X(glu, GluArgs)                                      \
  X(glu_backward, GluArgs)                             \
  X(rope, RopeArgs)                                    \
  X(softmax, SoftmaxArgs)                              \
  X(softmax_backward, SoftmaxArgs)                     \
  X(attention, AttentionArgs)                          \
  X(attention_backward, AttentionBackwardArgs)         \
  X(kv_put, KvPutArgs)                                 \
  X(ssd, SsdArgs)                                      \
  X(ssd_backward, SsdBackwardArgs)                     \
  X(gated_delta, DeltaArgs)                            \
  X(gated_delta_backward, DeltaBackwardArgs)           \
  X(rwkv7, Rwkv7Args)                                  \
  X(rwkv7_backward, Rwkv7BackwardArgs)                 \
  X(cross_entropy, CrossEntropyArgs)                   \
  X(dropout, DropoutArgs)                              \
  X(unary, UnaryArgs)                                  \
  X(binary, BinaryArgs)                                \
  X(copy, CopyArgs)                                    \
  X(reduce, ReduceArgs)                                \
  X(fill, FillArgs)                                    \
  X(axpy, AxpyArgs)                                    \
  X(peak, PeakArgs)                                    \
  X(selective_scan, ScanArgs)                          \
  X(selective_scan_backward, ScanBackwardArgs)         \
  X(causal_conv1d, ConvArgs)                           \
  X(causal_conv1d_backward, ConvBackwardArgs)          \
  X(linear_recurrence, RecurrenceArgs)                 \
  X(linear_recurrence_backward, RecurrenceBackwardArgs)\
  X(rg_lru, RgLruArgs)                                 \
  X(rg_lru_backward, RgLruBackwardArgs)               \
  X(qrows, QRowsArgs)                                  \
  X(qgemm, QGemmArgs)                                  \
  X(qdequantize, QDequantizeArgs)                      \
  X(quantize, QuantizeArgs)
#define MG_KERNELS(X)                                  \
  MG_STORED_KERNELS(X)                                 \
  X(sort_experts, SortExpertsArgs)                     \
  X(count_targets, CountArgs)                          \
  X(sum_squares, SumSquaresArgs)                       \
  X(clip, ClipArgs)                                    \
  X(adamw, AdamWArgs)                                  \
  X(sgd, SgdArgs)                                      \
  X(read, ReadArgs)
#define MG_BF16_KERNELS(X)                             \
  MG_STORED_KERNELS(X)                                 \
  X(cast, CastArgs)

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
