// Arguments of the kernels that walk a sequence and carry a state: selective scan, causal convolution, linear recurrence.
// As in args.h. S sequences, packed: sequence s owns the rows q_start[s] .. q_start[s+1]-1, and may own none. C channels,
// N states a channel. Where a state is given, row s is where sequence s begins and what it becomes; that of a sequence
// without rows stays. Promise: an element is one chain over the rows of its sequence, in order, so that a sequence has the
// same bits whole, in pieces with its state carried over, alone and packed, whatever the threads.
#pragma once
#include "core/args.h"

namespace mg {

// Selective scan (Gu & Dao 2023, arXiv:2312.00752, algorithm 2), fused with what stands around it:
//   d = delta + delta_bias, then softplus(d) if `softplus`
//   h[n] = exp(d * a[n]) * h[n] + d * b[n] * u,  y = (sum over n of h[n] * c[n] + skip * u) * silu(z)
constexpr int64_t kScanStride = 32;  // rows from one saved state to the next
template <class T> struct ScanArgs {
  const T *u, *delta;           // (T, C)
  const Wide<T>* a;             // (C, N)
  const T *b, *c;               // (T, N)
  const Wide<T>* skip;          // (C) or null
  const T* z;                   // (T, C) or null
  const Wide<T>* delta_bias;    // (C) or null
  const int32_t* q_start;       // (S + 1)
  Wide<T>* state;               // (S, N, C) or null: zero
  Wide<T>* saved;               // (T / kScanStride + S, N, C) or null: states for the backward; that before row
                                // i * kScanStride of sequence s is row q_start[s] / kScanStride + s + i
  T* y;                         // (T, C)
  int64_t tokens, channels, states, seqs;
  int32_t softplus;
};

// Backward of the above, where every sequence began at zero. Sums over channels (of b and c) are left in parts, one for each
// kScanBlock channels; sums over rows go sequence by sequence, each from its last row.
template <class T> struct ScanBackwardArgs {
  ScanArgs<T> fwd;  // with `saved` as the forward left it
  const T* dy;
  T *du, *ddelta, *dz;                // (T, C), each or null
  Wide<T>* da;                        // (C, N) or null
  Wide<T> *dskip, *ddelta_bias;       // (C) or null
  Wide<T> *part_db, *part_dc;         // (blocks, T, N)
  int32_t accumulate_du, accumulate_ddelta, accumulate_dz, accumulate_da, accumulate_dskip, accumulate_ddelta_bias;
};

// Causal depthwise convolution: y[t] = act(bias + sum over k of weight[k] * x[t - K + 1 + k]), rows before the sequence's
// first being those of the state, or zero. K taps.
template <class T> struct ConvArgs {
  const T* x;               // (T, C)
  const T* weight;          // (C, K)
  const T* bias;            // (C) or null
  const int32_t* q_start;   // (S + 1)
  Wide<T>* state;           // (S, K - 1, C) or null: the last rows, oldest first
  T* y;                     // (T, C)
  int64_t tokens, channels, taps, seqs;
  Act act;                  // none or silu
};
template <class T> struct ConvBackwardArgs {
  ConvArgs<T> fwd;  // without state
  const T* dy;
  T* dx;                    // (T, C) or null
  Wide<T> *dweight, *dbias; // (C, K), (C), or null
  int32_t accumulate_dx, accumulate_dweight, accumulate_dbias;
};

// h[t] = a[t] * h[t-1] + x[t], element by element.
template <class T> struct RecurrenceArgs {
  const T *x, *a;          // (T, C)
  const int32_t* q_start;  // (S + 1)
  Wide<T>* state;          // (S, C) or null: zero
  T* h;                    // (T, C)
  int64_t tokens, channels, seqs;
};
// From the last row to the first: g = dh + a[t+1] * g; dx = g, da = g * h[t-1].
template <class T> struct RecurrenceBackwardArgs {
  RecurrenceArgs<T> fwd;  // with h, without state
  const T* dh;
  T *dx, *da;             // (T, C) or null
  int32_t accumulate_dx, accumulate_da;
};

// RG-LRU (De et al. 2024, arXiv:2402.19427, section 2.4), fused from its gates on: with a = exp(-8 sigmoid(recurrent) *
// softplus(param)) and x' = sigmoid(input) * x,
//   h[t] = a * h[t-1] + sqrt(1 - a^2) * x', and h[t] = x' where positions[t] is 0.
template <class T> struct RgLruArgs {
  const T *x, *input, *recurrent;  // (T, C); the gates before their sigmoid
  const Wide<T>* param;            // (C)
  const int32_t* positions;        // (T)
  const int32_t* q_start;          // (S + 1)
  Wide<T>* state;                  // (S, C) or null: zero
  T* h;                            // (T, C)
  int64_t tokens, channels, seqs;
};
// The slope of the square root is bounded by kRgLruSlope, as its authors have it: a is 1 where the gate is closed.
constexpr double kRgLruSlope = 1000.0;
template <class T> struct RgLruBackwardArgs {
  RgLruArgs<T> fwd;  // with h, without state
  const T* dh;
  T *dx, *dinput, *drecurrent;  // (T, C) or null
  Wide<T>* dparam;              // (C) or null
  int32_t accumulate_dx, accumulate_dinput, accumulate_drecurrent, accumulate_dparam;
};

}  // namespace mg
