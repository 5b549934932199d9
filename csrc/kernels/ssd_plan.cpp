// Shares and scratch of the state-space duality; the layouts are those of SsdScratch, SsdBackwardScratch and ref/ssd.cpp.
#include "kernels/plan.h"

namespace mg {
namespace {

constexpr int64_t kWidest = 16;  // as in attention_plan.cpp
int64_t padded(int64_t n) { return (n + kWidest - 1) / kWidest * kWidest; }
int64_t at_least_one(int64_t n) { return n > 0 ? n : 1; }

template <class T> int64_t shares(const SsdArgs<T>& args) {
  return at_least_one(args.seqs * args.groups * ssd_blocks(args.heads, args.groups));
}
template <class T> int64_t states(const SsdArgs<T>& args) { return kSsdHeads * args.head_dim * padded(args.state_dim); }

template <class T> Plan forward(const SsdArgs<T>& args) {
  const int64_t width = padded(args.head_dim), state = padded(args.state_dim), chunk = kStateChunk;
  const int64_t floats = states(args) + chunk * (2 * state + 2 * chunk + 3 * width);
  return {shares(args), static_cast<size_t>(floats) * sizeof(float)};
}
template <class T> Plan backward(const SsdBackwardArgs<T>& args) {
  const int64_t width = padded(args.fwd.head_dim), state = padded(args.fwd.state_dim), chunk = kStateChunk;
  const int64_t floats = states(args.fwd) + width * state + chunk * (6 * state + 4 * chunk + 5 * width);
  return {shares(args.fwd), static_cast<size_t>(floats) * sizeof(float)};
}

}  // namespace

Plan plan_ssd(const SsdArgs<float>& args) { return forward(args); }
Plan plan_ssd(const SsdArgs<bf16>& args) { return forward(args); }
Plan plan_ssd_backward(const SsdBackwardArgs<float>& args) { return backward(args); }
Plan plan_ssd_backward(const SsdBackwardArgs<bf16>& args) { return backward(args); }

// The reference keeps a state, and in the backward those of a chunk and a gradient.
Plan plan_ssd(const SsdArgs<double>& args) {
  return {1, static_cast<size_t>(args.head_dim * args.state_dim) * sizeof(double)};
}
Plan plan_ssd_backward(const SsdBackwardArgs<double>& args) {
  return {1, static_cast<size_t>((kStateChunk + 2) * args.fwd.head_dim * args.fwd.state_dim) * sizeof(double)};
}

}  // namespace mg
