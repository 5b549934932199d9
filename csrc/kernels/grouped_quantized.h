// Products with quantized weights over groups of rows (experts). Nothing here is compiled for an instruction set: each group
// goes to the kernels of the plain product, which the arguments name, so a row has the bits of that product.
#pragma once
#include "kernels/plan.h"

namespace mg {

// Weights (N, K) of `count` experts, each `stride` bytes behind the one before, tables and order included; the rows of expert
// e are offsets[e] .. offsets[e + 1] - 1.
struct QExperts {
  const int32_t* offsets;  // (count + 1), from 0 to R
  int64_t count, stride;
};

// Activations X (R, K) in the order of experts to int8, in the tiles of each expert's own rows: `rows` has m = R and the order of
// K of expert 0, or none.
template <class T> struct GroupedQRowsArgs {
  QRowsArgs<T> rows;
  QExperts experts;
  void (*kernel)(const QRowsArgs<T>&, const Share&);
};

// C[r] = X[r] W[e]^T + bias[e] with X as grouped_qrows or qgather made it: `product` has w of expert 0, the codes of all R rows, bias (E, N), and
// m = R; no residual, no activation.
template <class T> struct GroupedQGemmArgs {
  QGemmArgs<T> product;
  QExperts experts;
  void (*kernel)(const QGemmArgs<T>&, const Share&);
};

// The same with the numbers of W: C[r] = A[r] W[e]^T + bias[e], or to_inputs C[r] (+)= A[r] W[e] for A (R, N), whose sums wait in
// C, which is then as wide as they are.
template <class T> struct GroupedQNumbersArgs {
  QWeight w;
  QExperts experts;
  const T* a;
  T* c;             // or null: the result goes to wide_c
  Wide<T>* wide_c;  // or null
  const T* bias;    // (E, N) or null
  int64_t rows;
  int32_t to_inputs, accumulate;
  void (*numbers)(const QDequantizeArgs<T>&, const Share&);
  void (*product)(const GemmArgs<T>&, const Share&);
};

// Activations that qrows made of `sources` rows, to the tiles of each expert's own: row r is source order[r] / chosen.
struct QGatherArgs {
  const int8_t* codes;
  const float* scales;
  const int32_t* starts;
  const int32_t* order;  // (R)
  int8_t* to_codes;
  float* to_scales;
  int32_t* to_starts;
  QExperts experts;
  int64_t rows, sources, chosen, groups, group;
  QType type;
};

void qgather(const QGatherArgs& args, const Share& share);
Plan plan_qgather(const QGatherArgs& args);
template <class T> void grouped_qrows(const GroupedQRowsArgs<T>& args, const Share& share);
template <class T> Plan plan_grouped_qrows(const GroupedQRowsArgs<T>& args);
template <class T> void grouped_qgemm(const GroupedQGemmArgs<T>& args, const Share& share);
template <class T> Plan plan_grouped_qgemm(const GroupedQGemmArgs<T>& args);
template <class T> void grouped_qnumbers(const GroupedQNumbersArgs<T>& args, const Share& share);
template <class T> Plan plan_grouped_qnumbers(const GroupedQNumbersArgs<T>& args);
template <class T> size_t grouped_scratch(int64_t rows, int64_t cols, int64_t depth, bool aside);

}  // namespace mg
