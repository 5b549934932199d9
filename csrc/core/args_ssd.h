// Arguments of the recurrences whose state is a matrix: included by args.h.
#pragma once

namespace mg {

// Recurrences go through a sequence in chunks of so many rows, counted from its first row in the call.
constexpr int64_t kStateChunk = 64;
// Room for the states that a forward leaves to its backward, one at the beginning of each chunk, and where those of sequence
// s begin: places that shapes alone bound, whatever the lengths of the sequences are.
static inline int64_t state_chunks(int64_t tokens, int64_t seqs) { return tokens / kStateChunk + seqs; }
static inline int64_t first_state_chunk(int64_t begin, int64_t seq) { return begin / kStateChunk + seq; }

// Mamba-2's state-space duality (Dao & Gu 2024, arXiv:2405.21060). With d = dt, or softplus(dt + dt_bias), then clamped to
// [dt_min, dt_max], head h and its group g = h / (H / G), sequence s owning rows q_start[s] .. q_start[s+1]-1:
//   S = exp(d_t a_h) S + d_t x_t b_t^T      (P, N)        y_t = S c_t + skip_h x_t
// In chunks: y = (c b^T, masked and decayed) (d x) + decayed c S^T. Logarithms of decays are summed in double.
// S starts from state[s] (zero if state is null), and state[s] becomes the last S; no row of a sequence leaves it alone.
constexpr int64_t kSsdHeads = 4;  // heads of a group that a share takes: they have c b^T in common
constexpr int64_t kSsdSteps = 4;  // up to so many rows, where nothing is kept, go one by one
static inline int64_t ssd_blocks(int64_t heads, int64_t groups) { return (heads / groups + kSsdHeads - 1) / kSsdHeads; }
template <class T> struct SsdArgs {
  const T *x, *dt, *b, *c;                  // (T, H, P), (T, H), (T, G, N), (T, G, N)
  const Wide<T> *a, *skip, *dt_bias;        // (H); skip and dt_bias may be null
  T* y;                                     // (T, H, P)
  Wide<T>* state;                           // (S, H, P, N) or null
  Wide<T>* chunks;                          // (state_chunks, H, P, N): S before each chunk, for the backward; or null
  const int32_t* q_start;                   // (S + 1)
  int64_t tokens, seqs, heads, groups, head_dim, state_dim;
  double dt_min, dt_max;
  int32_t softplus;
};

// One share computes what one sequence and kSsdHeads heads of a group give. What is summed over sequences or over shares of
// heads is left in parts, to be added up in order.
template <class T> struct SsdBackwardArgs {
  SsdArgs<T> fwd;                           // with chunks as the forward left them; y and state are not read
  const T* dy;                              // (T, H, P)
  T *dx, *ddt;                              // (T, H, P), (T, H)
  Wide<T> *part_db, *part_dc;               // (ssd_blocks, T, G, N)
  Wide<T> *part_da, *part_dskip, *part_dbias;  // (S, H); dskip and dbias are null where skip and dt_bias are
  int32_t accumulate_dx, accumulate_ddt;
};

}  // namespace mg
