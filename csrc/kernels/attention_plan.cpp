// Shares and scratch of attention; the layouts are those of ForwardScratch, DecodeScratch, BackwardScratch and ref/attention.cpp.
#include "kernels/plan.h"
#include "kernels/tiles.h"

namespace mg {

int64_t stacked_rows(int64_t q_rows, int64_t seqs, int64_t heads, int64_t kv_heads, int64_t width) {
  const int64_t bytes = width * static_cast<int64_t>(sizeof(float));  // of queries and sums of a row
  const int64_t of_sequence = seqs > 0 ? q_rows / seqs * (heads / kv_heads) : 0;
  int64_t rows = kStackedRows;
  for (int64_t more = 2 * rows; more <= kMostStackedRows; more *= 2)
    if (of_sequence >= kStackedLengths * more && q_rows * heads >= kStackedUnits * more && bytes * more <= kStackedBytes) rows = more;
  return rows;
}
namespace {

constexpr int64_t kWidestVector = 16;  // rows are padded to the widest target's vectors, so that plans are the same for all
constexpr int64_t kTallestTile = 16;
constexpr int64_t kMergeGrain = 1 << 16;  // floats of parts
constexpr int64_t kMemoryHeads = 8, kDecodeGrain = 1 << 17, kFewDecodeShares = 4;

int64_t padded(int64_t n) { return (n + kWidestVector - 1) / kWidestVector * kWidestVector; }
int64_t at_least_one(int64_t n) { return n > 0 ? n : 1; }

template <class T> int64_t forward_units(const AttentionArgs<T>& args) {
  return at_least_one(forward_blocks(args) * args.kv_heads);
}
template <class T> int64_t backward_units(const AttentionBackwardArgs<T>& args) {
  return at_least_one(args.fwd.seqs * args.fwd.kv_heads);
}

template <class T> Plan decode_plan(const AttentionArgs<T>& args) {
  const int64_t each = args.heads / args.kv_heads, groups = decode_groups(args);
  const int64_t rows = (args.kv_heads + groups - 1) / groups * each;
  const int64_t padded_rows = padded(rows);
  const int64_t spare = kTallestTile;  // rows
  const int64_t floats = (rows + spare) * (padded(args.k_dim) + padded(args.v_dim)) + 2 * rows * padded(args.v_dim) +
                         padded_rows * (2 * kKeyChunk + 2 * kWidestVector + 3);
  const double keys = args.seqs > 0 ? (double)args.k_rows / (double)args.seqs : 0.0;
  // What a number of the cache costs when it comes from memory is as much as so many heads' products with it.
  const int64_t heads = args.heads > kMemoryHeads * args.kv_heads ? args.heads : kMemoryHeads * args.kv_heads;
  const double work = (double)args.q_rows * (double)heads * keys * (double)(args.k_dim + args.v_dim);
  // Where no row is long there is nothing to merge, which is not known here: few shares, of some 10 microseconds.
  const int64_t merged = args.merge ? attention_parts(args) * args.heads * part_floats(args.v_dim) / kMergeGrain : 0;
  int64_t shares = args.merge ? merged : (int64_t)(work / (double)kDecodeGrain);
  // Two units or more each: while one is computed the next one's keys are fetched.
  const int64_t rows_or_parts = attention_parts(args) > args.q_rows ? attention_parts(args) : args.q_rows;
  const int64_t most = rows_or_parts * groups / 2 > kFewDecodeShares ? rows_or_parts * groups / 2 : kFewDecodeShares;
  if (shares > most) shares = most;
  if (shares > kMaxDecodeShares) shares = kMaxDecodeShares;
  return {at_least_one(shares), static_cast<size_t>(floats) * sizeof(float)};
}

template <class T> Plan forward_plan(const AttentionArgs<T>& args) {
  if (is_decode(args)) return decode_plan(args);
  const int64_t k_width = padded(args.k_dim), v_width = padded(args.v_dim);
  const int64_t rows = forward_rows(args) * (args.heads / args.kv_heads);
  const int64_t floats = kKeyChunk * (k_width + v_width) + kTallestTile * kKeyChunk * 2 +
                         (rows + kTallestTile) * k_width + 2 * rows * (v_width + kWidestVector) + 2 * padded(rows);
  return {shares_of(forward_units(args), forward_units_per_share(args)), static_cast<size_t>(floats) * sizeof(float)};
}

template <class T> Plan backward_plan(const AttentionBackwardArgs<T>& args) {
  const int64_t k_width = padded(args.fwd.k_dim), v_width = padded(args.fwd.v_dim);
  const int64_t rows = args.fwd.q_rows * (args.fwd.heads / args.fwd.kv_heads);
  const int64_t chunk = kKeyChunk * (3 * k_width + 2 * v_width);
  const int64_t tile = kBackwardRows * 4 * kKeyChunk;
  const int64_t blocks = (args.fwd.q_rows / kBackwardRows + 1) * (args.fwd.heads / args.fwd.kv_heads);
  const int64_t kept = blocks * packed_rows_floats(args.fwd.k_dim, args.fwd.v_dim);
  return {shares_of(backward_units(args), backward_units_per_share(args)),
          static_cast<size_t>(chunk + tile + rows * k_width + 2 * padded(rows) + kept) * sizeof(float)};
}

}  // namespace

Plan plan_attention(const AttentionArgs<float>& args) { return forward_plan(args); }
Plan plan_attention(const AttentionArgs<bf16>& args) { return forward_plan(args); }
Plan plan_attention_backward(const AttentionBackwardArgs<float>& args) { return backward_plan(args); }
Plan plan_attention_backward(const AttentionBackwardArgs<bf16>& args) { return backward_plan(args); }

// The reference takes a head a share and keeps one row of scores (and of their gradients).
Plan plan_attention(const AttentionArgs<double>& args) {
  return {args.heads, static_cast<size_t>(args.k_rows) * sizeof(double)};
}
Plan plan_attention_backward(const AttentionBackwardArgs<double>& args) {
  return {backward_units(args), 2 * static_cast<size_t>(args.fwd.k_rows) * sizeof(double)};
}

}  // namespace mg
