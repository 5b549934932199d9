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

// The gated delta rule (Yang et al. 2024, arXiv:2412.06464), of value head h with key head h / (H / G):
//   S = e^g_t S + k_t x_t^T  (K, V)  where  x_t = beta_t (v_t - e^g_t S^T k_t)        o_t = S^T q_t
// q is first multiplied by `scale`; with `normalize` q and k are divided by sqrt(|q|^2 + 1e-6) before.
// In chunks: (I + A) X = beta (V - e^sum K S), A the products of keys below the diagonal with their decays and beta, solved
// row by row; then O = e^sum Q S + (Q K^T, masked and decayed) X. State and chunks are as in SsdArgs.
constexpr double kDeltaEps = 1e-6;
constexpr int64_t kDeltaSteps = 4;  // up to so many rows, where nothing is kept, go one by one
template <class T> struct DeltaArgs {
  const T *q, *k, *v;           // (T, G, K), (T, G, K), (T, H, V)
  const Wide<T> *g, *beta;      // (T, H)
  T* o;                         // (T, H, V)
  Wide<T>* state;               // (S, H, K, V) or null
  Wide<T>* chunks;              // (state_chunks, H, K, V) or null
  const int32_t* q_start;       // (S + 1)
  int64_t tokens, seqs, heads, key_heads, k_dim, v_dim;
  double scale;
  int32_t normalize;
};

// One share computes what one sequence and one key head give.
template <class T> struct DeltaBackwardArgs {
  DeltaArgs<T> fwd;  // with chunks as the forward left them; o and state are not read
  const T* d_o;      // (T, H, V)
  T *dq, *dk, *dv;
  Wide<T> *dg, *dbeta;
  int32_t accumulate_dq, accumulate_dk, accumulate_dv, accumulate_dg, accumulate_dbeta;
};

// RWKV-7's time mixing (Peng et al. 2025, arXiv:2503.14456), head by head:
//   S = (diag(w_t) + b_t a_t^T) S + k_t v_t^T  (K, V)        y_t = S^T r_t
// token by token, an element of a product being one chain over K. q_start, state and kept are as in SsdArgs, but a state is
// kept before every kRwkvStride-th row.
constexpr int64_t kRwkvStride = 32;
template <class T> struct Rwkv7Args {
  const T *r, *k, *v, *a, *b;   // (T, H, K), v: (T, H, V)
  const Wide<T>* w;             // (T, H, K)
  T* y;                         // (T, H, V)
  Wide<T>* state;               // (S, H, K, V) or null
  Wide<T>* kept;                // (T / kRwkvStride + S, H, K, V) or null
  const int32_t* q_start;       // (S + 1)
  int64_t tokens, seqs, heads, k_dim, v_dim;
};
template <class T> struct Rwkv7BackwardArgs {
  Rwkv7Args<T> fwd;             // with kept as the forward left it; y and state are not read
  const T* dy;
  T *dr, *dk, *dv, *da, *db;
  Wide<T>* dw;
  int32_t accumulate_dr, accumulate_dw, accumulate_dk, accumulate_dv, accumulate_da, accumulate_db;
};

}  // namespace mg
