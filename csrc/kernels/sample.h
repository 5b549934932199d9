// From logits to a token, row by row, in double: penalties, temperature, top-k, top-p, min-p, and random bits that are a function
// of (seed, row, step). Plain arithmetic, compiled once: the same token on every machine.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "core/rng.h"
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

struct Weighed {  // a token among the likeliest
  double weight;
  int32_t id;
};
static inline bool likelier(const Weighed& a, const Weighed& b) { return a.weight > b.weight || (a.weight == b.weight && a.id < b.id); }

template <class T> static inline bool sample_sorts(const SampleArgs<T>& args) {
  return (args.top_k > 0 && args.top_k < args.vocab) || args.top_p < 1.0;
}
template <class T> static inline Plan plan_sample(const SampleArgs<T>& args) {
  const int64_t sorted = sample_sorts(args) ? args.vocab : 0;
  return {args.rows, (size_t)(args.vocab * 8 + sorted * (int64_t)sizeof(Weighed) + args.history_step * 4)};
}

constexpr double kLargestLogit = 1.7976931348623157e308 / 4;  // the difference of two such numbers is still finite

// Philox4x64-10 (Salmon et al. 2011), first word, for counter (1, row, step, 0): NumPy's Philox(key=(seed, "ZMPL")).
static inline uint64_t sample_bits(uint64_t seed, uint64_t row, uint64_t step) {
  __extension__ typedef unsigned __int128 Wide128;
  uint64_t k0 = seed, k1 = 0x5A4D504C, c0 = 1, c1 = row, c2 = step, c3 = 0;
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B97F4A7C15u, k1 += 0xBB67AE8584CAA73Bu) {
    const Wide128 p0 = (Wide128)0xD2E7470EE14C6C93u * c0, p1 = (Wide128)0xCA5A826395121157u * c2;
    c0 = (uint64_t)(p1 >> 64) ^ c1 ^ k0, c1 = (uint64_t)p1;
    c2 = (uint64_t)(p0 >> 64) ^ c3 ^ k1, c3 = (uint64_t)p0;
  }
  return c0;
}
static inline double sample_uniform(uint64_t seed, uint64_t row, uint64_t step) {
  return (double)(sample_bits(seed, row, step) >> 11) * 0x1p-53;
}

// e^x for x <= 0, within 2 units in the last place: e^x = 2^n e^r with |r| <= ln(2) / 2, and e^r by its series. What is below
// the normal numbers becomes 0. Lanes, so that a compiler has something to vectorize without changing sums.
typedef double Doubles __attribute__((vector_size(16)));
typedef int64_t Longs __attribute__((vector_size(16)));
static inline Doubles sample_exp(Doubles x) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number, in the low bits
  const Doubles zero = {0.0, 0.0}, low = x < -708.0 ? zero - 708.0 : x;
  const Doubles shifted = low * 1.4426950408889634 + kShift, n = shifted - kShift;
  const Doubles r = (low - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  Doubles p = zero + 1.0 / 6227020800.0;
  for (const double c : {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0,
                         1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0})
    p = p * r + c;
  const Longs bits = (Longs)p + ((Longs)shifted << 52);
  return x < -708.0 ? zero : (Doubles)bits;
}

// The largest of n numbers, NaN if one is.
template <class T> static inline T sample_largest(const T* x, int64_t n) {
  typedef T Lanes __attribute__((vector_size(16)));
  constexpr int64_t kLanes = 16 / sizeof(T);
  T top = (T)-INFINITY, sum = 0;
  Lanes most[4], wrong[4];
  for (int i = 0; i < 4; ++i) most[i] = Lanes{} - (T)INFINITY, wrong[i] = Lanes{};
  int64_t at = 0;
  for (; at + 4 * kLanes <= n; at += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) {
      Lanes v;
      memcpy(&v, x + at + i * kLanes, sizeof v);
      most[i] = v > most[i] ? v : most[i];
      wrong[i] = v == v ? wrong[i] : v;
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int64_t l = 0; l < kLanes; ++l) top = most[i][l] > top ? most[i][l] : top, sum += wrong[i][l];
  for (; at < n; ++at) {
    if (x[at] > top) top = x[at];
    if (x[at] != x[at]) sum = x[at];
  }
  return sum != sum ? sum : top;
}

static inline void sample_penalize(double* values, const int32_t* ids, int64_t prompt, int64_t count, int32_t* sorted,
                                   double repetition, double presence, double frequency) {
  if (repetition != 1.0) {
    memcpy(sorted, ids, (size_t)count * 4);
    std::sort(sorted, sorted + count);
    for (int64_t i = 0; i < count; ++i) {
      double& v = values[sorted[i]];
      if ((i > 0 && sorted[i] == sorted[i - 1]) || !(v - v == 0.0)) continue;
      v = v < 0.0 ? v * repetition : v / repetition;
      v = v > kLargestLogit ? kLargestLogit : v < -kLargestLogit ? -kLargestLogit : v;
    }
  }
  if (presence == 0.0 && frequency == 0.0) return;
  const int64_t written = count - prompt;
  memcpy(sorted, ids + prompt, (size_t)written * 4);
  std::sort(sorted, sorted + written);
  for (int64_t i = 0, same = 0; i < written; ++i) {
    ++same;
    if (i + 1 < written && sorted[i + 1] == sorted[i]) continue;
    values[sorted[i]] -= presence + frequency * (double)same;
    same = 0;
  }
}

// The `count` likeliest of n weights, the likeliest first, of equal ones the first; gives how many there are.
static inline int64_t sample_head(const double* weights, int64_t n, int64_t count, Weighed* head) {
  int64_t size = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Weighed here = {weights[i], (int32_t)i};
    if (size == count && !(here.weight > head[0].weight)) continue;  // of equal ones those before stay
    if (size == count) std::pop_heap(head, head + size--, likelier);
    head[size++] = here;
    std::push_heap(head, head + size, likelier);
  }
  std::sort_heap(head, head + size, likelier);
  return size;
}

// Puts to zero what is not among head[0 .. size).
static inline void sample_keep(double* weights, int64_t n, const Weighed* head, int64_t size) {
  memset(weights, 0, (size_t)n * sizeof(double));
  for (int64_t i = 0; i < size; ++i) weights[head[i].id] = head[i].weight;
}

constexpr int64_t kSampleBlock = 512;  // weights are summed up in blocks, so that a draw walks one of them
static inline double sample_sum(const double* weights, int64_t n) {
  Doubles sum[4] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 4; ++j) {
      Doubles w;
      memcpy(&w, weights + i + 2 * j, sizeof w);
      sum[j] += w;
    }
  const Doubles all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double total = all[0] + all[1];
  for (; i < n; ++i) total += weights[i];
  return total;
}
static inline double sample_total(const double* weights, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; i += kSampleBlock) total += sample_sum(weights + i, std::min(kSampleBlock, n - i));
  return total;
}

// The first token whose weight takes the sum of those up to it beyond `target`, or the last that has any.
static inline int32_t sample_at(const double* weights, int64_t n, double target) {
  double before = 0.0;
  int64_t last = 0;
  for (int64_t block = 0; block < n; block += kSampleBlock) {
    const int64_t size = std::min(kSampleBlock, n - block);
    const double sum = sample_sum(weights + block, size);
    if (sum == 0.0) continue;
    if (before + sum > target || block + size >= n) {
      double at = before;
      for (int64_t i = block; i < block + size; ++i) {
        if (weights[i] == 0.0) continue;
        last = i;
        if ((at += weights[i]) > target) return (int32_t)i;
      }
    }
    before += sum;
    for (int64_t i = block + size - 1; i >= block; --i)
      if (weights[i] != 0.0) {
        last = i;
        break;
      }
  }
  return (int32_t)last;
}

template <class T> void sample(const SampleArgs<T>& args, const Share& share) {
  const int64_t n = args.vocab, r = share.index;
  const T* logits = args.logits + r * n;
  double* const weights = (double*)share.scratch;
  Weighed* const head = (Weighed*)(weights + n);
  int32_t* const sorted = (int32_t*)(head + (sample_sorts(args) ? n : 0));
  double* const given = args.probabilities ? args.probabilities + r * n : nullptr;
  const T most = sample_largest(logits, n);
  if (!(most - most == 0)) {
    if (args.tokens) args.tokens[r] = -1;
    for (int64_t i = 0; given && i < n; ++i) given[i] = NAN;
    return;
  }
  const SampleRow at = args.where[r];
  const bool penalized = args.history && (args.repetition != 1.0 || args.presence != 0.0 || args.frequency != 0.0);
  double top = (double)most;
  if (penalized || args.temperature > 0.0)
    for (int64_t i = 0; i < n; ++i) weights[i] = (double)logits[i];
  if (penalized) {
    sample_penalize(weights, args.history + at.history * args.history_step, at.prompt, at.ids, sorted, args.repetition,
                    args.presence, args.frequency);
    top = sample_largest(weights, n);
  }
  if (args.temperature == 0.0) {
    int64_t first = 0;
    while (penalized ? weights[first] != top : logits[first] != most) ++first;
    if (args.tokens) args.tokens[r] = (int32_t)first;
    for (int64_t i = 0; given && i < n; ++i) given[i] = i == first ? 1.0 : 0.0;
    return;
  }
  // The largest is subtracted first: a tiny temperature can only overflow to weight 0.
  for (int64_t i = 0; i < n; ++i) weights[i] = (weights[i] - top) / args.temperature;
  if (args.top_k > 0 && args.top_k < n) {
    const int64_t size = sample_head(weights, n, args.top_k, head);
    std::fill(weights, weights + n, -INFINITY);
    for (int64_t i = 0; i < size; ++i) weights[head[i].id] = head[i].weight;
  }
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) {
    Doubles w;
    memcpy(&w, weights + i, sizeof w);
    w = sample_exp(w);
    memcpy(weights + i, &w, sizeof w);
  }
  if (i < n) weights[i] = sample_exp(Doubles{weights[i], 0.0})[0];
  double total = sample_total(weights, n);
  if (args.top_p < 1.0) {
    for (int64_t wanted = 256;; wanted *= 8) {
      const int64_t size = sample_head(weights, n, std::min(wanted, n), head);
      double before = 0.0;
      int64_t kept = 0;
      for (; kept < size && before < args.top_p * total && head[kept].weight > 0.0; ++kept) before += head[kept].weight;
      if (kept == size && size < n) continue;
      sample_keep(weights, n, head, kept);
      break;
    }
    total = sample_total(weights, n);
  }
  if (args.min_p > 0.0) {  // the likeliest has weight 1
    for (int64_t j = 0; j < n; ++j) weights[j] = weights[j] < args.min_p ? 0.0 : weights[j];
    total = sample_total(weights, n);
  }
  for (int64_t j = 0; given && j < n; ++j) given[j] = weights[j] / total;
  if (args.tokens)
    args.tokens[r] = sample_at(weights, n, sample_uniform(args.seed, (uint64_t)at.number, (uint64_t)at.step) * total);
}

}  // namespace mg
