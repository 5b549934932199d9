// Shares and scratch of the gated delta rule; the layouts are those of DeltaScratch, DeltaBackwardScratch and ref/delta.cpp.
#include "kernels/plan.h"

namespace mg {
namespace {

constexpr int64_t kWidest = 16;  // as in attention_plan.cpp
int64_t padded(int64_t n) { return (n + kWidest - 1) / kWidest * kWidest; }
int64_t at_least_one(int64_t n) { return n > 0 ? n : 1; }

template <class T> int64_t floats(const DeltaArgs<T>& args) {
  const int64_t keys = padded(args.k_dim), values = padded(args.v_dim), chunk = kStateChunk;
  return args.heads / args.key_heads * args.k_dim * values + chunk * (3 * keys + 4 * chunk + 3 * values);
}
template <class T> Plan forward(const DeltaArgs<T>& args) {
  return {at_least_one(args.seqs * args.key_heads), static_cast<size_t>(floats(args)) * sizeof(float)};
}
template <class T> Plan backward(const DeltaBackwardArgs<T>& args) {
  const int64_t keys = padded(args.fwd.k_dim), values = padded(args.fwd.v_dim), chunk = kStateChunk;
  const int64_t more = 2 * keys * values + chunk * (3 * keys + 4 * chunk + 4 * values);
  return {at_least_one(args.fwd.seqs * args.fwd.key_heads), static_cast<size_t>(floats(args.fwd) + more) * sizeof(float)};
}

}  // namespace

Plan plan_gated_delta(const DeltaArgs<float>& args) { return forward(args); }
Plan plan_gated_delta(const DeltaArgs<bf16>& args) { return forward(args); }
Plan plan_gated_delta_backward(const DeltaBackwardArgs<float>& args) { return backward(args); }
Plan plan_gated_delta_backward(const DeltaBackwardArgs<bf16>& args) { return backward(args); }

// The reference keeps a state and a row of each kind, and in the backward the states of a chunk.
Plan plan_gated_delta(const DeltaArgs<double>& args) {
  return {1, static_cast<size_t>(args.k_dim * args.v_dim + 2 * args.k_dim + args.v_dim) * sizeof(double)};
}
Plan plan_gated_delta_backward(const DeltaBackwardArgs<double>& args) {
  const DeltaArgs<double>& fwd = args.fwd;
  return {1, static_cast<size_t>((kStateChunk + 2) * fwd.k_dim * fwd.v_dim + 4 * fwd.k_dim + 2 * fwd.v_dim) * sizeof(double)};
}

}  // namespace mg
