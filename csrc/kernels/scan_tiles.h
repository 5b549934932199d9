// How scans and what resembles them are cut: by blocks of channels, as every row of a sequence needs the one before.
#pragma once
#include "core/args_scan.h"
#include "kernels/tiles.h"

namespace mg {

// Four cache lines of a row. Part of the numerical promise: gradients that are sums over channels are summed in blocks.
constexpr int64_t kScanBlock = 64;
// A share takes several blocks where one is little work: about 5 microseconds of updates of a state, or of elements.
constexpr int64_t kScanGrain = 1 << 15;
static inline int64_t scan_blocks(int64_t channels) { return shares_of(channels, kScanBlock); }
static inline int64_t blocks_per_share(int64_t work_of_block) {
  return work_of_block >= kScanGrain ? 1 : kScanGrain / (work_of_block > 0 ? work_of_block : 1);
}
template <class T> static inline int64_t scan_blocks_per_share(const ScanArgs<T>& args) {
  return blocks_per_share(args.tokens * kScanBlock * args.states);
}
template <class T> static inline int64_t conv_blocks_per_share(const ConvArgs<T>& args) {
  return blocks_per_share(args.tokens * kScanBlock * args.taps);
}
template <class T> static inline int64_t recurrence_blocks_per_share(const RecurrenceArgs<T>& args) {
  return blocks_per_share(args.tokens * kScanBlock);
}
template <class T> static inline int64_t rg_lru_blocks_per_share(const RgLruArgs<T>& args) {
  return blocks_per_share(args.tokens * kScanBlock * 8);  // its exponentials
}

}  // namespace mg
