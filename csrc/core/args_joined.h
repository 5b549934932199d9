// Several products of the same few rows as one: included by args.h.
#pragma once

namespace mg {

constexpr int64_t kJoinedRows = 8;  // no more than few-row tiles take on any target

// C[i] = A B[i]^T + bias[i] for `count` weights B[i] (N[i], K), which lie apart; A (M, K), M <= kJoinedRows, C[i] (M, N[i]).
// Each element has gemm's bits.
template <class T> struct JoinedGemmArgs {
  struct Weight {
    const T *b, *bias;  // bias or null
    T* c;
    int64_t n;
  };
  const T* a;
  Weight weights[kMostJoined];
  int64_t m, k;
  int32_t count;
};

// Columns in units of 32 (whole panels), weight after weight: those that a share takes of one weight.
struct JoinedRange {
  int64_t begin, end;
};
static inline int64_t joined_units(int64_t n) { return (n + 31) / 32; }
// The weight's units follow `before` others of `all`; part `index` of `parts`.
static inline JoinedRange joined_range(int64_t own, int64_t before, int64_t all, int64_t index, int64_t parts) {
  const int64_t begin = index * all / parts - before, end = (index + 1) * all / parts - before;
  return {begin < 0 ? 0 : begin < own ? begin : own, end < 0 ? 0 : end < own ? end : own};
}
template <class T> static inline int64_t joined_columns(const JoinedGemmArgs<T>& args) {
  int64_t n = 0;
  for (int32_t i = 0; i < args.count; ++i) n += args.weights[i].n;
  return n;
}

}  // namespace mg
