// Shares and scratch of RWKV-7's time mixing; the layouts are those of rwkv.inl.h and ref/rwkv.cpp.
#include "kernels/plan.h"

namespace mg {
namespace {

constexpr int64_t kWidest = 16;  // as in attention_plan.cpp
int64_t padded(int64_t n) { return (n + kWidest - 1) / kWidest * kWidest; }
int64_t at_least_one(int64_t n) { return n > 0 ? n : 1; }

template <class T> Plan forward(const Rwkv7Args<T>& args) {
  const int64_t keys = padded(args.k_dim), values = padded(args.v_dim);
  const int64_t floats = 5 * keys + 2 * values + args.k_dim * values;
  return {at_least_one(args.seqs * args.heads), static_cast<size_t>(floats) * sizeof(float)};
}
template <class T> Plan backward(const Rwkv7BackwardArgs<T>& args) {
  const Rwkv7Args<T>& fwd = args.fwd;
  const int64_t keys = padded(fwd.k_dim), values = padded(fwd.v_dim);
  const int64_t floats = 5 * keys + (3 + kRwkvStride) * values + 5 * fwd.k_dim * kWidest + (kRwkvStride + 2) * fwd.k_dim * values;
  return {at_least_one(fwd.seqs * fwd.heads), static_cast<size_t>(floats) * sizeof(float)};
}

}  // namespace

Plan plan_rwkv7(const Rwkv7Args<float>& args) { return forward(args); }
Plan plan_rwkv7(const Rwkv7Args<bf16>& args) { return forward(args); }
Plan plan_rwkv7_backward(const Rwkv7BackwardArgs<float>& args) { return backward(args); }
Plan plan_rwkv7_backward(const Rwkv7BackwardArgs<bf16>& args) { return backward(args); }

// The reference keeps a state, and in the backward those of a stretch and a gradient; S^T a and its gradient.
Plan plan_rwkv7(const Rwkv7Args<double>& args) {
  return {1, static_cast<size_t>((args.k_dim + 1) * args.v_dim) * sizeof(double)};
}
Plan plan_rwkv7_backward(const Rwkv7BackwardArgs<double>& args) {
  const Rwkv7Args<double>& fwd = args.fwd;
  return {1, static_cast<size_t>(((kRwkvStride + 2) * fwd.k_dim + 2) * fwd.v_dim) * sizeof(double)};
}

}  // namespace mg
