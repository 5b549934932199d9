// From logits to a token, row by row, in double: penalties, temperature, top-k, top-p, min-p, and random bits that are a function
// of (seed, row, step). Plain arithmetic, compiled once: the same token on every machine.
#pragma once
#include <stdint.h>

#include "kernels/plan.h"

namespace mg {

// Where a row of logits stands: its number and step among the random numbers, and which row of `history` its ids are.
struct SampleRow {
  int64_t number, step, history, prompt, ids;  // ids: of the prompt and those written since
};
constexpr int64_t kSampleRowNumbers = sizeof(SampleRow) / sizeof(int64_t);

// tokens[r] is drawn from softmax(penalized logits / temperature) within the filters, in transformers' order; temperature 0
// takes the first largest. -1 where logits hold NaN, +infinity, or nothing else than -infinity.
template <class T> struct SampleArgs {
  const T* logits;         // (R, V)
  const SampleRow* where;  // (R)
  const int32_t* history;  // (sequences, history_step), ids below V, or null without penalties
  int32_t* tokens;         // (R) or null
  double* probabilities;   // (R, V) or null: the distribution
  int64_t rows, vocab, history_step, top_k;
  uint64_t seed;
  double temperature, top_p, min_p, repetition, presence, frequency;
};

Plan plan_sample(const SampleArgs<float>& args);
Plan plan_sample(const SampleArgs<double>& args);
void sample(const SampleArgs<float>& args, const Share& share);
void sample(const SampleArgs<double>& args, const Share& share);
double sample_uniform(uint64_t seed, uint64_t row, uint64_t step);  // in [0, 1): what a token is drawn with

}  // namespace mg
