// Shares and scratch of scans, convolutions and recurrences; the layouts are those of kernels/scan*.inl.h, conv.inl.h and
// ref/scan.cpp.
#include "kernels/plan.h"
#include "kernels/scan_tiles.h"

namespace mg {
namespace {

// For the widest vectors, so that plans are the same for all targets; kernels/scan_backward.inl.h says what is kept.
constexpr int64_t kLanes = 16, kGroup = 4, kSkew = 80, kArrays = 20;
int64_t whole(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

template <class T> Plan scan_plan(const ScanArgs<T>& args) {
  const int64_t floats = 2 * args.states * kScanBlock + 2 * whole(args.states) + 2 * kScanBlock;
  return {shares_of(scan_blocks(args.channels), scan_blocks_per_share(args)), static_cast<size_t>(floats) * sizeof(float)};
}
template <class T> Plan scan_backward_plan(const ScanBackwardArgs<T>& args) {
  const int64_t states = args.fwd.states;
  const int64_t floats = 4 * states * kScanBlock + 7 * kScanStride * kScanBlock + 4 * kScanStride * kGroup * kLanes +
                         2 * kScanStride * whole(states) + 2 * kScanBlock + kArrays * kSkew;
  return {shares_of(scan_blocks(args.fwd.channels), scan_blocks_per_share(args.fwd)), static_cast<size_t>(floats) * sizeof(float)};
}
template <class T> Plan conv_plan(const ConvArgs<T>& args, int64_t rows) {
  return {shares_of(scan_blocks(args.channels), conv_blocks_per_share(args)),
          static_cast<size_t>(rows * kScanBlock) * sizeof(float)};
}
template <class T> Plan recurrence_plan(const RecurrenceArgs<T>& args) {
  return {shares_of(scan_blocks(args.channels), recurrence_blocks_per_share(args)), 0};
}
template <class T> Plan rg_lru_plan(const RgLruArgs<T>& args) {
  return {shares_of(scan_blocks(args.channels), rg_lru_blocks_per_share(args)), 0};
}

}  // namespace

#define MG_SCAN_PLANS(T)                                                                                            \
  Plan plan_selective_scan(const ScanArgs<T>& args) { return scan_plan(args); }                                     \
  Plan plan_selective_scan_backward(const ScanBackwardArgs<T>& args) { return scan_backward_plan(args); }           \
  Plan plan_causal_conv1d(const ConvArgs<T>& args) { return conv_plan(args, args.taps); }                           \
  Plan plan_causal_conv1d_backward(const ConvBackwardArgs<T>& args) { return conv_plan(args.fwd, 3 * args.fwd.taps + 1); } \
  Plan plan_linear_recurrence(const RecurrenceArgs<T>& args) { return recurrence_plan(args); }                      \
  Plan plan_linear_recurrence_backward(const RecurrenceBackwardArgs<T>& args) { return recurrence_plan(args.fwd); } \
  Plan plan_rg_lru(const RgLruArgs<T>& args) { return rg_lru_plan(args); }                                          \
  Plan plan_rg_lru_backward(const RgLruBackwardArgs<T>& args) { return rg_lru_plan(args.fwd); }
MG_SCAN_PLANS(float)
MG_SCAN_PLANS(bf16)
#undef MG_SCAN_PLANS

// The references are not cut. A channel keeps its states, in the backward those of every row.
Plan plan_selective_scan(const ScanArgs<double>& args) { return {1, static_cast<size_t>(args.states) * sizeof(double)}; }
Plan plan_selective_scan_backward(const ScanBackwardArgs<double>& args) {
  return {1, static_cast<size_t>((args.fwd.tokens + 3) * args.fwd.states + args.fwd.tokens) * sizeof(double)};
}
Plan plan_causal_conv1d(const ConvArgs<double>&) { return {1, 0}; }
Plan plan_causal_conv1d_backward(const ConvBackwardArgs<double>& args) {
  return {1, static_cast<size_t>(args.fwd.tokens + args.fwd.taps) * sizeof(double)};
}
Plan plan_linear_recurrence(const RecurrenceArgs<double>&) { return {1, 0}; }
Plan plan_linear_recurrence_backward(const RecurrenceBackwardArgs<double>&) { return {1, 0}; }
Plan plan_rg_lru(const RgLruArgs<double>&) { return {1, 0}; }
Plan plan_rg_lru_backward(const RgLruBackwardArgs<double>&) { return {1, 0}; }

}  // namespace mg
