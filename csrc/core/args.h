// What each kernel is given. Plain structs of pointers and sizes, no STL: this header is compiled for every instruction
// set. T is the element type in memory (float and bf16 in targets/, double in ref/); Wide<T> is float for bf16, else T. Sizes are int64_t, counted in elements.
// A pointer marked "or null" switches the feature off. `accumulate` adds to the output instead of overwriting it.
// Letters: T tokens, D width, H query heads, G key/value heads, K head width, V vocabulary, R rows, C columns.
#pragma once
#include <stdint.h>

#include "core/bf16.h"
#include "core/qtensor.h"

namespace mg {

// One share of a kernel's work: this is number `index` of `count`. The count follows from the shape alone (plan.h), so
// results do not depend on how many threads there are. `scratch` is private to the running share.
struct Share {
  int64_t index, count;
  void* scratch;
};

enum class Act : int32_t { none, gelu, gelu_tanh, relu, relu2, silu };
enum class Unary : int32_t { neg, exp, log, sqrt, rsqrt, tanh, erf, sigmoid, square, reciprocal, sin, cos };
enum class Binary : int32_t { add, sub, mul, div, max, min, less, less_equal, equal };
enum class Reduce : int32_t { sum, max };

constexpr int kMostJoined = 4;  // products of the same rows as one: q, k, v and a gate

// C = residual + act(op(A) op(B) + bias), or op(A) op(B) factor, element by element; op(A) is (M, K), op(B) is (K, N), C is (M, N); `batch` independent products.
// trans_a: A is stored (K, M); trans_b: B is stored (N, K). ld*: row stride as stored. What is (M, N) shares ldc.
// accumulate: C += op(A) op(B), and then everything else is null/none.
// Promise: each element of C is one chain of fma over k = 0..K-1 in order (started from C when accumulating), whatever
// M, N, the tiles and the threads are; so a row has the same bits alone or in a batch. bf16 is summed in float and rounded
// once, when C is written; what avx512amx and avx512bf16 add when is in docs/architecture.md.
template <class T> struct GemmArgs {
  const T *a, *b;
  T* c;               // or null: the result goes to wide_c
  Wide<T>* wide_c;    // or null; a weight gradient
  const T* bias;      // (N) or null
  const T* residual;  // (M, N) or null
  const T* factor;    // (M, N) or null; then bias, act and residual are null/none
  T* slope;           // (M, N) or null: act'(op(A) op(B) + bias), kept for the backward
  int64_t m, n, k, lda, ldb, ldc;
  int64_t batch, stride_a, stride_b, stride_c;
  int32_t trans_a, trans_b, accumulate;
  Act act;
};

// y[t] (+)= table[ids[t]]; ids in [0, vocab) are checked by the caller.
template <class T> struct EmbeddingArgs {
  const T* table;      // (V, D)
  const int32_t* ids;  // (T)
  T* y;                // (T, D)
  int64_t tokens, width, vocab;
  int32_t accumulate;
};

// dtable[ids[t]] += dy[t], in the order of t; without accumulate dtable is first set to zero.
template <class T> struct EmbeddingBackwardArgs {
  const T* dy;
  const int32_t* ids;
  Wide<T>* dtable;
  int64_t tokens, width, vocab;
  int32_t accumulate;
};

// Routing of tokens to experts, from logits (T, E). Scores are softmax or sigmoid of a token's logits. `route` chooses the
// `chosen` experts of each token with the largest score + bias, the largest first, equal ones by number; NaN counts as
// infinite, so that it is seen in the output. Needs chosen <= experts.
enum class Score : int32_t { softmax, sigmoid };
template <class T> struct RouteArgs {
  const T* logits;       // (T, E)
  const Wide<T>* bias;   // (E) or null: it changes the choice only
  int32_t* ids;          // (T, chosen)
  int64_t tokens, experts, chosen;
  Score score;
};

// y[t, j] = scale * s[t, ids[t, j]], or with renormalize scale * s / (sum of the chosen s + eps); s is the score.
// Backward: dx (T, E) (+)= the gradient of the logits, from dy.
template <class T> struct RouteWeightsArgs {
  const T* logits;     // (T, E)
  const int32_t* ids;  // (T, chosen), different in a row
  const T* dy;         // (T, chosen) in the backward
  T *y, *dx;
  int64_t tokens, experts, chosen;
  double scale, eps;
  Score score;
  int32_t renormalize, accumulate;
};

// The places of the assignments in order of their experts (ids, n of them), equal ones in order: order[place[i]] = i;
// expert e has the places offsets[e] .. offsets[e + 1] - 1. load[e] is their number.
template <class T> struct SortExpertsArgs {
  const int32_t* ids;
  int32_t *order, *place;  // (n)
  int32_t* offsets;        // (E + 1)
  T* load;                 // (E) or null
  int64_t n, experts;
};

// y[r] (+)= weights[order[r]] * x[order[r] / chosen]: the rows of tokens in the order of experts. weights null: 1.
template <class T> struct GatherArgs {
  const T* x;            // (T, D)
  const int32_t* order;  // (T * chosen)
  const T* weights;      // (T * chosen) or null
  T* y;                  // (T * chosen, D)
  int64_t rows, chosen, width;
  int32_t accumulate;
};

// The way back: y[t] (+)= sum over j of weights[t, j] * x[place[t, j]], in order, then + residual[t].
// `combine_dot`: dweights[t, j] (+)= dot(dy[t], x[place[t, j]]).
template <class T> struct CombineArgs {
  const T* x;            // (T * chosen, D)
  const int32_t* place;  // (T, chosen)
  const T* weights;      // (T, chosen) or null: 1
  const T* residual;     // (T, D) or null
  const T* dy;           // (T, D), for combine_dot
  T *y, *dweights;
  int64_t tokens, chosen, width;
  int32_t accumulate;
};

// C[r] (+)= A[r] op(B[e]) + bias[e] for the rows r in offsets[e] .. offsets[e + 1] - 1 of expert e; A (R, K), C (R, N).
// trans_b: B[e] is stored (N, K), else (K, N). The promise of GemmArgs: a row's bits are its own.
template <class T> struct GroupedArgs {
  const T *a, *b;
  T* c;               // or null: the result goes to wide_c
  Wide<T>* wide_c;    // or null
  const T* bias;      // (E, N) or null
  const int32_t* offsets;  // (E + 1), from 0 to R
  int64_t rows, n, k, experts;
  int32_t trans_b, accumulate;
};

// C[e] (M, N) (+)= the sum over expert e's rows r, in order, of a[r] (M) times b[r] (N): the gradient of its weight. In
// `grouped_sum` b is null and N = 1: of its bias.
template <class T> struct GroupedWeightArgs {
  const T* a;         // (R, M)
  const T* b;         // (R, N)
  T* c;               // (E, M, N), or null: the result goes to wide_c
  Wide<T>* wide_c;    // or null
  const int32_t* offsets;
  int64_t rows, m, n, experts;
  int32_t accumulate;
};

// LayerNorm (center = 1) or RMSNorm (center = 0) over the last axis.
// y = (x - mean) * rstd * weight + bias, rstd = 1/sqrt(var + eps). mean and rstd (R) are kept for the backward.
template <class T> struct NormArgs {
  const T* x;       // (R, C)
  const T* weight;  // (C) or null
  const T* bias;    // (C) or null
  T* y;             // (R, C)
  Wide<T> *mean, *rstd;  // (R); mean is null when center = 0
  int64_t rows, cols;
  double eps;
  int32_t center;
};

// dx (rows shared out) and, in a kernel of its own, dweight and dbias (columns shared out, rows in order). Where both are
// wanted, the first also leaves each share's sums in `part_dweight` and `part_dbias` (shares, C), to be added up in order.
template <class T> struct NormBackwardArgs {
  const T *dy, *x, *weight;
  const Wide<T> *mean, *rstd;
  T* dx;                     // (R, C), or null in norm_backward_weight
  Wide<T> *dweight, *dbias;  // (C) or null
  Wide<T> *part_dweight, *part_dbias;
  int64_t rows, cols;
  int32_t center, accumulate_dx, accumulate_dweight, accumulate_dbias;
};

// y = act(x); dx (+)= dy * act'(x), where x is the value before the activation.
template <class T> struct ActArgs {
  const T *x, *dy;  // dy is null in the forward
  T* y;             // y in the forward, dx in the backward; may alias dy
  int64_t n;
  Act act;
  int32_t accumulate;
};

// y = act(gate) * up; backward gives dgate and dup (either may be null).
template <class T> struct GluArgs {
  const T *gate, *up, *dy;
  T *y, *dgate, *dup;
  int64_t n;
  Act act;
  int32_t accumulate_dgate, accumulate_dup;
};

// Rotary embedding (Su et al. 2021, arXiv:2104.09864): rotates the first 2 * half components of each head by the angle
// whose cosine and sine are cos/sin[positions[t]]. interleaved: pairs (2i, 2i+1) instead of (i, i + half).
// inverse = 1 rotates back, which is the backward pass. y may alias x.
template <class T> struct RopeArgs {
  const T* x;                // (T, heads, head_dim)
  const int32_t* positions;  // (T), in [0, table_rows)
  const Wide<T> *cos, *sin;  // (table_rows, half)
  T* y;
  int64_t tokens, heads, head_dim, half, table_rows;
  int32_t interleaved, inverse, accumulate;
};

// y = softmax(scale * x) over rows; backward dx (+)= scale * y * (dy - sum(dy * y)).
template <class T> struct SoftmaxArgs {
  const T *x, *dy;  // forward: x. backward: x is y
  T* y;             // forward: y. backward: dx
  int64_t rows, cols;
  double scale;
  int32_t accumulate;
};

// What cached keys and values are stored as: `same` as the queries, or numbers of another type. int8: code times a scale.
enum class KvType : int32_t { same, f32, bf16, int8 };

// Scaled dot-product attention over packed sequences, tiled, with online softmax (Dao et al. 2022, arXiv:2205.14135;
// Milakov & Gimelshein 2018). Sequence s owns query rows q_start[s] .. q_start[s+1]-1 and the key rows
// k_start[s] .. k_start[s]+k_len[s]-1; query row i of the sequence (of n) has position k_len[s] - n + i.
// Scores: c = scale * q.k, then soft_cap * tanh(c / soft_cap) if soft_cap > 0, then + alibi[h] * (k_pos - q_pos);
// a key is seen if (not causal or k_pos <= q_pos) and (window < 0 or |q_pos - k_pos| < window).
// A row that sees no key gives zeros and lse = -inf. Head h reads key/value head h / (H / G).
// Promise: a row's result depends on its own query and its keys only: key chunks start at multiples of kKeyChunk from
// the sequence's first key and are merged in order within stretches of kKeyStretch, and these in order again. What avx512bf16
// rounds and pairs is in docs/architecture.md.
// int8 keys and values: q.k is that with the codes times the key's scale, a probability is multiplied by the value's scale where
// it is a factor. The chains are the same.
// With `parts` the forward is two kernels: the first leaves the sums of each stretch there, the second (`merge`) makes the
// output of them.
template <class T> struct AttentionArgs {
  const T *q, *k, *v;      // (T, H, K), (keys, G, K), (keys, G, Kv) with row strides below
  T* o;                    // (T, H, Kv)
  Wide<T>* lse;            // (H, T): log sum exp of each row's scores, for the backward; may be null in the forward
  const int32_t* q_start;  // (S + 1)
  const int32_t* k_start;  // (S)
  const int32_t* k_len;    // (S)
  const Wide<T>* alibi;    // (H) or null
  Wide<T>* parts;          // (attention_parts(), H, part_floats()) or null
  int64_t q_rows, k_rows, seqs, heads, kv_heads, k_dim, v_dim;
  int64_t q_stride, k_stride, v_stride, o_stride;  // elements from one token to the next
  double scale, soft_cap;
  int64_t window;
  int32_t causal, merge;
  KvType kv;                           // of k and v
  const float *k_scales, *v_scales;    // int8: (G, keys + kKeyChunk) each; nothing depends on what lies behind the keys
};

// x (T, heads, width) to rows ids[t] of a cache of another type: rounded to nearest; int8 with a scale max |x| / 127 for each
// token and head, NaN where a number of it is not finite. A float's arithmetic, also where x is double.
template <class T> struct KvPutArgs {
  const T* x;
  const int32_t* ids;  // (T), no two the same
  void* data;          // (rows, heads, width)
  float* scales;       // int8: (heads, scale_step)
  int64_t tokens, heads, width, scale_step;
  KvType kv;
};

// Backward of the above: one share computes dq, dk, dv of one sequence and one key/value head (all its query heads). Keys
// outside all sequences get zero unless dk and dv accumulate.
template <class T> struct AttentionBackwardArgs {
  AttentionArgs<T> fwd;    // with o and lse as the forward left them
  const T* d_o;            // (T, H, Kv), stride o_stride
  T *dq, *dk, *dv;         // strides q_stride, k_stride, v_stride
  int32_t accumulate_dq, accumulate_dk, accumulate_dv;
};

// Cross-entropy of rows of logits. target < 0 means ignored: loss 0, gradient 0. losses[r] = lse - logit[target].
// dlogits (may alias logits): (softmax - onehot) * inv_count[0], or null.
// label_smoothing e: the target is (1 - e) onehot + e / V (Szegedy et al. 2016, arXiv:1512.00567). z_loss z adds z * lse^2
// (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
template <class T> struct CrossEntropyArgs {
  const T* logits;         // (R, V)
  const int32_t* targets;  // (R), < vocab
  Wide<T>* losses;         // (R)
  T* dlogits;              // (R, V) or null
  const Wide<T>* inv_count;  // one number, or null for 1
  int64_t rows, vocab;
  double label_smoothing, z_loss;
};

// out[0] = 1 / max(1, number of targets >= 0).
template <class T> struct CountArgs {
  const int32_t* targets;
  T* out;
  int64_t n;
};

// y = x * mask / (1 - p), mask drawn by Philox with key `seed` at counters made of step[0], stream and element (core/rng.h).
// The backward is the same kernel on dy.
template <class T> struct DropoutArgs {
  const T* x;
  T* y;
  const int64_t* step;  // one number that changes from step to step
  uint64_t seed, stream;
  int64_t n;
  double p;
  int32_t accumulate;
};

// Element-wise operations over up to 6 axes with strides in elements (0 broadcasts). y is contiguous.
constexpr int kMaxDims = 6;
template <class T> struct UnaryArgs {
  const T* x;
  T* y;
  int64_t n;
  Unary op;
};
template <class T> struct BinaryArgs {
  const T *a, *b;
  T* y;
  int64_t shape[kMaxDims], stride_a[kMaxDims], stride_b[kMaxDims];
  int32_t dims;
  Binary op;
};
// y[i] (+)= x[strided i]; with to_x = 1 the other way: x[strided i] (+)= y[i] (strides must then not overlap).
template <class T> struct CopyArgs {
  T *x, *y;
  int64_t shape[kMaxDims], stride[kMaxDims];
  int32_t dims, to_x, accumulate;
};
// y (outer, inner) = sum or max of x (outer, axis, inner) over axis, in order.
template <class T> struct ReduceArgs {
  const T* x;
  T* y;             // or null: the result goes to wide_y
  Wide<T>* wide_y;  // or null; the gradient of a bias
  int64_t outer, axis, inner;
  Reduce op;
  int32_t accumulate;
};
template <class T> struct FillArgs {
  T* y;
  int64_t n;
  double value;
};
// y = alpha * x + beta * y; alpha is multiplied by alpha_at[0] if that is not null. beta = 0 never reads y.
template <class T> struct AxpyArgs {
  const T* x;
  T* y;
  const Wide<T>* alpha_at;
  int64_t n;
  double alpha, beta;
};
// wide (+)= narrow, or with to_narrow = 1 the other way, rounded.
template <class T> struct CastArgs {
  T* narrow;
  Wide<T>* wide;
  int64_t n;
  int32_t to_narrow, accumulate;
};

// Sum of squares of each chunk of kNormChunk elements, in double.
constexpr int64_t kNormChunk = 16384;
template <class T> struct SumSquaresArgs {
  const T* x;
  double* partial;  // (ceil(n / kNormChunk))
  int64_t n;
};
// From the partials (in order) and the loss: control = {norm, clip factor, finite (1 or 0)}. The factor is
// min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it; max_norm <= 0 does not clip.
template <class T> struct ClipArgs {
  const double* partial;
  const T* loss;  // one number or null
  T* control;     // (3)
  int64_t chunks;
  double max_norm;
};

// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2) on one stretch of the arenas. Does nothing when
// control[2] is 0. `hyper` = {learning rate}; step[0] counts from 1; gradients are multiplied by control[1].
template <class T> struct AdamWArgs {
  T *param, *m, *v;
  const T* grad;
  const T *hyper, *control;  // control may be null
  const int64_t* step;
  int64_t n;
  double beta1, beta2, eps, weight_decay, lr_scale;
  bf16* rounded;  // or null: a copy of the new parameters, rounded
};
// SGD as torch.optim.SGD: g += weight_decay * p; buf = momentum * buf + g (buf = g at step 1); p -= lr * (nesterov ? g + momentum * buf : buf).
template <class T> struct SgdArgs {
  T *param, *buf;  // buf is null when momentum = 0
  const T* grad;
  const T *hyper, *control;
  const int64_t* step;
  int64_t n;
  double momentum, weight_decay, lr_scale;
  int32_t nesterov;
  bf16* rounded;  // as above
};

// What benches hold other kernels against. `peak` does kPeakGrain floating-point operations a share in independent chains of
// the fastest multiply-add of T; `read` sums an array up, chunk by chunk.
constexpr int64_t kPeakGrain = 3 << 23;  // a multiple of every target's pass; some 200 microseconds of fma, 9 of tiles
template <class T> struct PeakArgs {
  Wide<T>* y;  // (shares): the mean of each share's chains, which is 1
  int64_t shares;
};
constexpr int64_t kReadGrain = 1 << 16;
template <class T> struct ReadArgs {
  const T* x;
  double* partial;  // (ceil(n / kReadGrain))
  int64_t n;
};

}  // namespace mg

#include "core/args_joined.h"
#include "core/args_quantized.h"
#include "core/args_state.h"
