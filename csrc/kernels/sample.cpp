// See sample.h. A file of its own, because bindings are compiled for size.
#include "kernels/sample.h"

#include <math.h>
#include <string.h>

#include <algorithm>

namespace mg {
namespace {

struct Weighed {  // a token among the likeliest
  double weight;
  int32_t id;
};
bool likelier(const Weighed& a, const Weighed& b) { return a.weight > b.weight || (a.weight == b.weight && a.id < b.id); }

constexpr double kLargestLogit = 1.7976931348623157e308 / 4;  // the difference of two such numbers is still finite

// Philox4x64-10 (Salmon et al. 2011), first word, for counter (1, row, step, 0): NumPy's Philox(key=(seed, "ZMPL")).
uint64_t sample_bits(uint64_t seed, uint64_t row, uint64_t step) {
  __extension__ typedef unsigned __int128 Wide128;
  uint64_t k0 = seed, k1 = 0x5A4D504C, c0 = 1, c1 = row, c2 = step, c3 = 0;
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B97F4A7C15u, k1 += 0xBB67AE8584CAA73Bu) {
    const Wide128 p0 = (Wide128)0xD2E7470EE14C6C93u * c0, p1 = (Wide128)0xCA5A826395121157u * c2;
    c0 = (uint64_t)(p1 >> 64) ^ c1 ^ k0, c1 = (uint64_t)p1;
    c2 = (uint64_t)(p0 >> 64) ^ c3 ^ k1, c3 = (uint64_t)p0;
  }
  return c0;
}

// e^x for x <= 0, within 2 units in the last place: e^x = 2^n e^r with |r| <= ln(2) / 2, and e^r by its series. What is below
// the normal numbers becomes 0. Lanes, so that a compiler has something to vectorize without changing sums.
typedef double Doubles __attribute__((vector_size(16)));
typedef int64_t Longs __attribute__((vector_size(16)));
Doubles sample_exp(Doubles x) {
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

// The largest of n numbers, NaN if one is; and where it is first. Vectors of 16 bytes, four at a time.
template <class T> struct SampleLanes {
  typedef T Vector __attribute__((vector_size(16)));
  typedef decltype(Vector{} == Vector{}) Flags;
  static constexpr int64_t kLanes = 16 / sizeof(T), kStep = 4 * kLanes;
  static Vector at(const T* x) {
    Vector v;
    memcpy(&v, x, sizeof v);
    return v;
  }
  static bool any(Flags flags) {
    int64_t words[2];
    memcpy(words, &flags, sizeof words);
    return (words[0] | words[1]) != 0;
  }
};
template <class T> T sample_largest(const T* x, int64_t n) {
  using L = SampleLanes<T>;
  T top = (T)-INFINITY;
  typename L::Vector most[4];
  typename L::Flags wrong = {};
  for (auto& each : most) each = typename L::Vector{} - (T)INFINITY;
  int64_t at = 0;
  for (; at + L::kStep <= n; at += L::kStep) {
    for (int i = 0; i < 4; ++i) {
      const auto v = L::at(x + at + i * L::kLanes);
      most[i] = v > most[i] ? v : most[i];
      wrong |= v != v;
    }
  }
  bool nan = L::any(wrong);
  for (const auto& each : most)
    for (int64_t l = 0; l < L::kLanes; ++l) top = each[l] > top ? each[l] : top;
  for (; at < n; ++at) {
    if (x[at] > top) top = x[at];
    nan = nan || x[at] != x[at];
  }
  return nan ? (T)NAN : top;
}
template <class T> int64_t sample_first(const T* x, int64_t n, T value) {  // which is there
  using L = SampleLanes<T>;
  const typename L::Vector wanted = typename L::Vector{} + value;
  int64_t at = 0;
  for (; at + L::kStep <= n; at += L::kStep) {
    typename L::Flags found = L::at(x + at) == wanted;
    for (int i = 1; i < 4; ++i) found |= L::at(x + at + i * L::kLanes) == wanted;
    if (L::any(found)) break;
  }
  while (x[at] != value) ++at;
  return at;
}

void sample_penalize(double* values, const int32_t* ids, int64_t prompt, int64_t count, int32_t* sorted,
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
int64_t sample_head(const double* weights, int64_t n, int64_t count, Weighed* head) {
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

// Puts to zero what is not among the likeliest that make up `target`: those before which less has been summed up. Weights are
// at most 1; sums of those between two neighbouring numbers of 7 bits say between which two the end lies, and only these are
// sorted.
constexpr int64_t kSampleBins = 64 * 64 + 1;
int64_t sample_bin(double weight) {
  int64_t bits;
  memcpy(&bits, &weight, sizeof bits);
  return std::max<int64_t>(0, (bits >> 46) - ((1023 - 64) << 6));  // below 2^-64 all are in the first
}
void sample_nucleus(double* weights, int64_t n, double target, double* sums, Weighed* among) {
  memset(sums, 0, kSampleBins * sizeof(double));
  for (int64_t i = 0; i < n; ++i) sums[sample_bin(weights[i])] += weights[i];
  double before = 0.0;
  int64_t last = kSampleBins - 1, size = 0;
  for (; last > 0 && before + sums[last] < target; --last) before += sums[last];
  for (int64_t i = 0; i < n; ++i) {
    const int64_t bin = sample_bin(weights[i]);
    if (bin > last) continue;
    if (bin == last && weights[i] > 0.0) among[size++] = {weights[i], (int32_t)i};
    weights[i] = 0.0;
  }
  std::sort(among, among + size, likelier);
  for (int64_t i = 0; i < size && before < target; ++i) {
    weights[among[i].id] = among[i].weight;
    before += among[i].weight;
  }
}

template <class T> bool sample_sorts(const SampleArgs<T>& args) {
  return (args.top_k > 0 && args.top_k < args.vocab) || args.top_p < 1.0;
}
template <class T> Plan plan_of(const SampleArgs<T>& args) {
  const int64_t sorted = sample_sorts(args) ? args.vocab * (int64_t)sizeof(Weighed) + kSampleBins * 8 : 0;
  return {args.rows, (size_t)(args.vocab * 8 + sorted + args.history_step * 4)};
}

constexpr int64_t kSampleBlock = 512;  // weights are summed up in blocks, so that a draw walks one of them
double sample_sum(const double* weights, int64_t n) {
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
double sample_total(const double* weights, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; i += kSampleBlock) total += sample_sum(weights + i, std::min(kSampleBlock, n - i));
  return total;
}

// The first token whose weight takes the sum of those up to it beyond `target`, or the last that has any.
int32_t sample_at(const double* weights, int64_t n, double target) {
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

template <class T> void sample_row(const SampleArgs<T>& args, const Share& share) {
  const int64_t n = args.vocab, r = share.index;
  const T* logits = args.logits + r * n;
  double* const weights = (double*)share.scratch;
  const bool sorts = sample_sorts(args);
  double* const sums = weights + n;
  Weighed* const head = (Weighed*)(sums + (sorts ? kSampleBins : 0));
  int32_t* const sorted = (int32_t*)(head + (sorts ? n : 0));
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
  if (penalized) {
    for (int64_t i = 0; i < n; ++i) weights[i] = (double)logits[i];
    sample_penalize(weights, args.history + at.history * args.history_step, at.prompt, at.ids, sorted, args.repetition,
                    args.presence, args.frequency);
    top = sample_largest(weights, n);
  }
  if (args.temperature == 0.0) {
    const int64_t first = penalized ? sample_first(weights, n, top) : sample_first(logits, n, most);
    if (args.tokens) args.tokens[r] = (int32_t)first;
    for (int64_t i = 0; given && i < n; ++i) given[i] = i == first ? 1.0 : 0.0;
    return;
  }
  // The largest is subtracted first: a tiny temperature can only overflow to weight 0.
  const auto scaled = [&](int64_t i, int64_t two) {
    const Doubles x = penalized ? Doubles{weights[i], weights[i + two]} : Doubles{(double)logits[i], (double)logits[i + two]};
    return (x - top) / args.temperature;
  };
  const auto put = [&](int64_t i, Doubles x) { memcpy(weights + i, &x, sizeof x); };
  const bool few = args.top_k > 0 && args.top_k < n;
  int64_t i = 0;
  for (; few && i < n; ++i) weights[i] = scaled(i, 0)[0];
  if (few) {
    const int64_t size = sample_head(weights, n, args.top_k, head);
    memset(weights, 0, (size_t)n * sizeof(double));
    for (i = 0; i < size; ++i) weights[head[i].id] = sample_exp(Doubles{head[i].weight, 0.0})[0];
    i = n;
  }
  for (; i + 2 <= n; i += 2) put(i, sample_exp(scaled(i, 1)));
  if (i < n) weights[i] = sample_exp(scaled(i, 0))[0];
  double total = sample_total(weights, n);
  if (args.top_p < 1.0) {
    sample_nucleus(weights, n, args.top_p * total, sums, head);
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

}  // namespace

double sample_uniform(uint64_t seed, uint64_t row, uint64_t step) {
  return (double)(sample_bits(seed, row, step) >> 11) * 0x1p-53;
}

Plan plan_sample(const SampleArgs<float>& args) { return plan_of(args); }
Plan plan_sample(const SampleArgs<double>& args) { return plan_of(args); }
void sample(const SampleArgs<float>& args, const Share& share) { sample_row(args, share); }
void sample(const SampleArgs<double>& args, const Share& share) { sample_row(args, share); }

}  // namespace mg
