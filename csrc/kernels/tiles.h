// Tile sizes that kernels and plans must agree on. Each with its reason.
#pragma once
#include <stdint.h>

#include "core/args.h"

#include "kernels/gemm_tiles.h"
#include "kernels/grouped_tiles.h"

namespace mg {

constexpr int64_t kKeyChunk = 64;     // keys merged at a time; part of the numerical promise, never tuned
constexpr int64_t kKeyStretch = 512;  // keys that are summed up by themselves, so that shares of decode can; the same
// Rows of attention that a chunk of keys is packed for: query rows times the heads that share the keys. Up to four times as many
// as long as sequences have four blocks of them and all have enough for several threads (a mask leaves blocks unlike work), and
// queries and sums of a block stay in L2 beside the chunk.
constexpr int64_t kStackedRows = 128, kMostStackedRows = 512;
constexpr int64_t kStackedLengths = 4, kStackedUnits = 16, kStackedBytes = 512 << 10;
constexpr int64_t kLongQueries = kMostStackedRows * kStackedUnits;  // from here on as many, however many heads there are
constexpr int64_t kLeastQueryRows = 8;
constexpr int64_t kBackwardRows = 64;  // query rows of one head against a chunk of keys
// Floats of so many rows that are kept packed, behind what says where they are: pairs of bf16 along and across, which take as much
// as floats or more.
constexpr int64_t kPackedRowsHead = 16;
static inline int64_t packed_rows_floats(int64_t k_dim, int64_t v_dim) {
  const auto whole = [](int64_t width) { return (width + 15) / 16 * 16; };
  const auto of = [&](int64_t width) { return kBackwardRows * whole((width + 1) / 2) + kBackwardRows / 2 * whole(width); };
  return kPackedRowsHead + of(k_dim) + of(v_dim);
}

// An attention share takes several (rows, key head) or (sequence, key head) units where one is little work, so that a
// model of a few thousand parameters is not handed to a second thread: at least this many multiply-adds, by average
// lengths.
constexpr int64_t kAttentionGrain = 1 << 18;
static inline int64_t attention_units(int64_t query_rows, int64_t k_rows, int64_t seqs, int64_t depth) {
  const int64_t keys = seqs > 0 ? k_rows / seqs : 0;
  const double work = (double)query_rows * (double)(keys > 0 ? keys : 1) * (double)depth;
  return work >= (double)kAttentionGrain ? 1 : (int64_t)((double)kAttentionGrain / (work > 1.0 ? work : 1.0));
}

// How many stacked rows a forward unit has: in attention_plan.cpp, the same for every target.
int64_t stacked_rows(int64_t q_rows, int64_t seqs, int64_t heads, int64_t kv_heads, int64_t width);
// Query rows of a forward unit. Always inline, as what stays a function here would be of no target's namespace.
#define MG_HERE static inline __attribute__((always_inline))
template <class T> MG_HERE int64_t forward_rows(const AttentionArgs<T>& args) {
  const int64_t width = args.k_dim + args.v_dim;
  const int64_t rows = stacked_rows(args.q_rows, args.seqs, args.heads, args.kv_heads, width) / (args.heads / args.kv_heads);
  return rows > kLeastQueryRows ? rows : kLeastQueryRows;
}
template <class T> MG_HERE int64_t forward_blocks(const AttentionArgs<T>& args) {
  const int64_t rows = forward_rows(args);
  return (args.q_rows + rows - 1) / rows;
}
template <class T> MG_HERE int64_t forward_units_per_share(const AttentionArgs<T>& args) {
  const int64_t most = forward_rows(args), rows = most < args.q_rows ? most : args.q_rows;
  return attention_units(rows * (args.heads / args.kv_heads), args.k_rows, args.seqs, args.k_dim + args.v_dim);
}
#undef MG_HERE

// Decode: a row for each sequence, so that keys and values are read once and little is computed. A unit is some key heads of
// a row and, where the rows are few, one stretch of its keys: its sums are a part, and parts are merged afterwards.
constexpr int64_t kDecodePiece = 4096;  // bytes of a token's keys that a unit reads, at most: what it keeps fits L1 beside them
constexpr int64_t kDecodeUnits = 8;     // heads are cut finer where there are fewer
constexpr int64_t kMaxDecodeShares = 64, kSplitRows = 8;
template <class T> static inline bool is_decode(const AttentionArgs<T>& args) { return args.q_rows <= args.seqs; }
template <class T> static inline int64_t decode_groups(const AttentionArgs<T>& args) {
  const int64_t width = args.k_dim > args.v_dim ? args.k_dim : args.v_dim;
  const int64_t groups = (args.kv_heads * width * (int64_t)sizeof(T) + kDecodePiece - 1) / kDecodePiece;
  return groups < args.kv_heads ? groups : args.kv_heads;
}
// Parts that there is room for, 0 where keys are not cut. Sequences that share keys could need more, and are not cut then.
template <class T> static inline int64_t attention_parts(const AttentionArgs<T>& args) {
  if (!is_decode(args) || args.q_rows > kSplitRows || args.k_rows <= kKeyStretch) return 0;
  return args.k_rows / kKeyStretch + args.q_rows;
}
// Floats of a part of one head: the output in whole vectors of the widest target, sums by lanes, the largest score.
constexpr int64_t kPartSums = 16, kPartMax = 16;
static inline int64_t part_floats(int64_t v_dim) { return (v_dim + 15) / 16 * 16 + kPartSums + kPartMax; }
template <class T> static inline int64_t backward_units_per_share(const AttentionBackwardArgs<T>& args) {
  const AttentionArgs<T>& fwd = args.fwd;
  const int64_t rows = fwd.seqs > 0 ? fwd.q_rows / fwd.seqs * (fwd.heads / fwd.kv_heads) : 0;
  return attention_units(rows, fwd.k_rows, fwd.seqs, 3 * fwd.k_dim + 2 * fwd.v_dim);
}

// Whether the keys of each sequence come after those of the one before.
template <class T> static inline bool keys_in_order(const AttentionArgs<T>& args) {
  bool yes = true;
  for (int64_t s = 1; s < args.seqs; ++s) yes &= args.k_start[s] >= args.k_start[s - 1] + (int64_t)args.k_len[s - 1];
  return yes;
}
// Calls body(begin, end) for the keys outside all sequences that the shares of sequence `seq` see to: those behind its own, and
// those before all if its own come first. Without any sequence the first share sees to all of them. In order only the next
// sequence is looked at: there may be thousands of short ones.
template <class T, class Body>
static inline void each_key_gap(const AttentionArgs<T>& args, int64_t seq, bool in_order, const Body& body) {
  const int64_t begin = args.seqs > 0 ? args.k_start[seq] : 0, stop = args.seqs > 0 ? begin + args.k_len[seq] : 0;
  int64_t next = args.k_rows;
  bool first = seq == 0 || !in_order, behind = true;
  if (in_order) {
    if (seq + 1 < args.seqs) next = args.k_start[seq + 1];
  } else {
    bool any = false;
    for (int64_t s = 0; s < args.seqs; ++s) {
      const int64_t start = args.k_start[s], end = start + args.k_len[s];
      if (start == end) continue;
      any = true;
      if (start < begin || (start == begin && s < seq)) first = false;
      if (start >= stop) next = start < next ? start : next;
      else if (end > stop || (end == stop && s < seq)) behind = false;
    }
    if (!any && seq == 0) body((int64_t)0, args.k_rows);
    if (begin == stop) return;
  }
  if (first && begin > 0) body((int64_t)0, begin);
  if (behind && next > stop) body(stop, next);
}

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
