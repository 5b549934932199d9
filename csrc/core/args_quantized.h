// Arguments of quantized products and of what makes their operands: included by args.h.
#pragma once

namespace mg {

// Activations to int8 for a quantized product. scale = max |x| / 127 of each row and group, code = x * (127 / max) to
// nearest even, start = q_start_factor times the sum of a group's codes, what a product with unsigned weight codes starts from
// (to be multiplied with the offset where the type is not direct), or of the codes of each 16 and each 32. A float's
// arithmetic, also where x is double. Groups and K as in QWeight; codes beyond K are 0. Layout in core/qtensor.h.
template <class T> struct QRowsArgs {
  const T* x;            // (M, K)
  int8_t* codes;         // (M, groups * group)
  float* scales;         // (M, groups)
  int32_t* starts;       // (M, groups * q_starts)
  const int32_t* order;  // (K) of the weight, or null
  int64_t m, k, group;
  QType type;            // of the weight: says the offset, the parts and the height of tiles
};

// C = residual + act(X W^T + bias) with X as QRowsArgs made it.
// Promise: sums of products are exact integers, and an element depends on its row and column alone: s from 0 over the groups
// in order, s = fma(float(sum of the group's products), weight scale * activation scale, s). Where the type has a minimum or
// a group has several parts: t from 0 over the parts in order, t = fma(float(sum of the part's products), scale, t), then
// t = fma(minimum, float(sum of the activation's codes), t), and s = fma(t, activation scale, s).
template <class T> struct QGemmArgs {
  QWeight w;  // (N, K)
  const int8_t* codes;
  const float* scales;
  const int32_t* starts;
  T* c;               // or null: the result goes to wide_c
  Wide<T>* wide_c;    // or null
  const T* bias;      // (N) or null
  const T* residual;  // (M, N) or null
  T* slope;           // (M, N) or null, as in GemmArgs
  // Further weights that take the same activations: C[i] = X W[i]^T + bias[i]. wide_c, residual, slope and act are then unused.
  struct Joined {
    QWeight w;
    T* c;
    const T* bias;  // or null
  } more[kMostJoined - 1];
  int64_t m;
  int32_t joined;  // how many there are
  Act act;
};

// Rows of a quantized weight as numbers (q_number), rounded once to T: y[i] = W[ids ? ids[i] : first + i].
template <class T> struct QDequantizeArgs {
  QWeight w;
  const int32_t* ids;  // (rows) or null
  T* y;                // (rows, K)
  int64_t rows, first;
};

// Numbers to a quantized weight. Groups of float16 scales: of several scales, each with the integers it rounds to and the
// least-squares scale for these, the one with the least squared error; the integers are then chosen for its float16.
// One scale a column: max |x| / 127. A column with NaN or infinity, or a scale beyond float16, gets scales NaN.
template <class T> struct QuantizeArgs {
  const T* x;     // (rows, K)
  QWeight w;      // of a direct type
  uint8_t* data;  // w.data, to be written; rows first .. first + rows, first a multiple of kQCols
  int64_t rows, first;
};

// Codes and scales of others into the layout of QWeight. Rows as above; columns are in the order of the codes.
struct QPackArgs {
  const uint8_t* codes;  // (rows, K), each below 2^bits
  const float* scales;   // (rows, groups), exact in the type's own; null where they are bytes
  const float* leasts;   // (rows, groups) or null: minima
  const uint8_t* bytes;  // (rows, groups) or null: integer zeros, exponents, or codes of nested scales
  QWeight w;
  uint8_t* data;
  int64_t rows, first;
};

// Rows of blocks of a GGUF file (llama.cpp's q4_0 is int4, q8_0 int8) into the layout of QWeight.
struct QBlocksArgs {
  const uint8_t* blocks;  // (rows, bytes of a row)
  int32_t* finite;        // a number for each panel of the rows: whether all scales and minima are
  QWeight w;
  uint8_t* data;
  int64_t rows, first;
};

// Rows of a QWeight as blocks of a GGUF file: the inverse.
struct QUnblocksArgs {
  QWeight w;
  uint8_t* blocks;  // (rows, bytes of a row)
  int64_t rows, first;
};

// Scales (and minima) of groups for which sum w[i] (x[i] - scale q[i] + least)^2 is small, q[i] the nearest whole number in
// low..high, or entry of a book. Tried are scales that put the largest (with a least: the highest above the lowest) at high +
// step, for each step, and of opposite sign where sides is 2; each is fitted to its integers `rounds` times, by least squares,
// and the best of all kept. Promise: a group's sums are chains over its numbers in order.
template <class T> struct QFitArgs {
  const T* x;        // (groups, length), finite
  const T* weights;  // (kinds, length), not below zero: group g has row g % kinds; null: ones
  const T* steps;    // (count)
  T* scale;          // (groups)
  T* least;          // (groups) or null: none
  int64_t groups, length, kinds, count;
  int32_t low, high, sides, rounds;
  int32_t bounded;   // least is not below zero
  QBook book;        // none or iq4
};

}  // namespace mg
