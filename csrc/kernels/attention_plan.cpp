// Shares and scratch of attention; the layouts are those of ForwardScratch, BackwardScratch and ref/attention.cpp.
#include "kernels/plan.h"
#include "kernels/tiles.h"

namespace mg {
namespace {

constexpr int64_t kWidestVector = 16;  // rows are padded to the widest target's vectors, so that plans are the same for all

int64_t padded(int64_t n) { return (n + kWidestVector - 1) / kWidestVector * kWidestVector; }
int64_t at_least_one(int64_t n) { return n > 0 ? n : 1; }

template <class T> int64_t forward_units(const AttentionArgs<T>& args) {
  return at_least_one((args.q_rows + kQueryTile - 1) / kQueryTile * args.heads);
}
template <class T> int64_t backward_units(const AttentionBackwardArgs<T>& args) {
  return at_least_one(args.fwd.seqs * args.fwd.kv_heads);
}

// Narrow storage is widened: queries for the forward, and the sums of dq over the key chunks.
template <class T> Plan forward_plan(const AttentionArgs<T>& args) {
  const int64_t width = padded(args.v_dim), queries = kNarrow<T> ? kQueryTile * padded(args.k_dim) : 0;
  const int64_t floats = kKeyChunk * (args.k_dim + width) + kQueryTile * (kKeyChunk + width) + queries;
  return {shares_of(forward_units(args), forward_units_per_share(args)), static_cast<size_t>(floats) * sizeof(float)};
}

template <class T> Plan backward_plan(const AttentionBackwardArgs<T>& args) {
  const int64_t k_dim = args.fwd.k_dim, v_dim = args.fwd.v_dim, k_width = padded(k_dim), v_width = padded(v_dim);
  const int64_t chunk = kKeyChunk * (2 * k_width + k_dim + v_dim + v_width);
  const int64_t sums = kNarrow<T> ? args.fwd.q_rows * (args.fwd.heads / args.fwd.kv_heads) * k_width : 0;
  const int64_t tile = kQueryTile * (2 * k_width + v_width + 3 * kKeyChunk);
  return {shares_of(backward_units(args), backward_units_per_share(args)),
          static_cast<size_t>(chunk + tile + sums) * sizeof(float)};
}

}  // namespace

Plan plan_attention(const AttentionArgs<float>& args) { return forward_plan(args); }
Plan plan_attention(const AttentionArgs<bf16>& args) { return forward_plan(args); }
Plan plan_attention_backward(const AttentionBackwardArgs<float>& args) { return backward_plan(args); }
Plan plan_attention_backward(const AttentionBackwardArgs<bf16>& args) { return backward_plan(args); }

// The reference keeps one row of scores (and of their gradients).
Plan plan_attention(const AttentionArgs<double>& args) {
  return {forward_units(args), static_cast<size_t>(args.k_rows) * sizeof(double)};
}
Plan plan_attention_backward(const AttentionBackwardArgs<double>& args) {
  return {backward_units(args), 2 * static_cast<size_t>(args.fwd.k_rows) * sizeof(double)};
}

}  // namespace mg
