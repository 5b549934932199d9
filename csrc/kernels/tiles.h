// Tile sizes that kernels and plans must agree on. Each with its reason.
#pragma once
#include <stdint.h>

#include "kernels/gemm_tiles.h"

namespace mg {

constexpr int64_t kQueryTile = 32;   // query rows per attention share: one share is enough work to hand out
constexpr int64_t kKeyChunk = 64;    // keys merged at a time; part of the numerical promise, never tuned

// A flat loop is cut into stretches of kGrain elements (about 5 microseconds of memory traffic), rows into whole rows.
// `static inline`: compiled for several instruction sets, never merged by the linker.
constexpr int64_t kGrain = 16384;
struct Range {
  int64_t begin, end;
};
static inline int64_t shares_of(int64_t n, int64_t grain) { return n <= grain ? 1 : (n + grain - 1) / grain; }
static inline Range range_of(int64_t index, int64_t n, int64_t grain) {
  const int64_t begin = index * grain, end = begin + grain;
  return {begin < n ? begin : n, end < n ? end : n};
}
static inline int64_t rows_per_share(int64_t cols) { return cols >= kGrain ? 1 : kGrain / (cols > 0 ? cols : 1); }
// Kernels that walk every row in order are cut by columns: four cache lines, so that a row's piece is worth fetching.
constexpr int64_t kColumnBlock = 64;
// Outputs of one reduce share: about kGrain elements read, and whole cache lines where the outputs lie side by side.
static inline int64_t reduce_outputs(int64_t axis, int64_t inner) {
  const int64_t outputs = rows_per_share(axis);
  return inner > 1 && outputs < kColumnBlock ? kColumnBlock : outputs;
}

}  // namespace mg
