#include "kernels/gemm.inl.h"
#include "kernels/gemm_joined.inl.h"
#include "kernels/grouped.inl.h"
#include "kernels/routing.inl.h"

static void gemm(const GemmArgs<float>& args, const Share& share) { gemm_of<FloatWords<float>>(args, share); }
static void gemm(const GemmArgs<bf16>& args, const Share& share) { gemm_of<FloatWords<bf16>>(args, share); }
static void gemm_joined(const JoinedGemmArgs<float>& args, const Share& share) { gemm_joined_vectors<FloatWords<float>>(args, share); }
static void gemm_joined(const JoinedGemmArgs<bf16>& args, const Share& share) { gemm_joined_vectors<FloatWords<bf16>>(args, share); }
template <class T> static void grouped_linear(const GroupedArgs<T>& args, const Share& share) {
  grouped_rows(args, share, &gemm_part<FloatWords<T>>);
}
template <class T> static void grouped_weight(const GroupedWeightArgs<T>& args, const Share& share) {
  grouped_columns(args, share, &gemm_part<FloatWords<T>>);
}
