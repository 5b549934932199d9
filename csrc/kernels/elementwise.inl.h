// One value in, one value out. Shares: stretches of kGrain elements of the output. Every lane is loaded before it is
// stored, so an output may be the same array as an input of the same shape.

// y (+)= act(x)
template <class T> void act(const ActArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  with_act(args.act, [&](auto kind) {
    each_many(range.begin, range.end, [&](int64_t i, auto part) MG_ALWAYS {
      store_or_add(args.y + i, apply_act<kNarrow<T>>(kind.value, get(args.x + i, part)), args.accumulate, part);
    });
  });
}

// dx (+)= dy * act'(x)
template <class T> void act_backward(const ActArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  with_act(args.act, [&](auto kind) {
    each_many(range.begin, range.end, [&](int64_t i, auto part) MG_ALWAYS {
      const auto slope = act_grad<kNarrow<T>>(kind.value, get(args.x + i, part));
      store_or_add(args.y + i, mul(get(args.dy + i, part), slope), args.accumulate, part);
    });
  });
}

// y = act(gate) * up
template <class T> void glu(const GluArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  with_act(args.act, [&](auto kind) {
    each_many(range.begin, range.end, [&](int64_t i, auto part) MG_ALWAYS {
      ask_to_write(args.y + i + kPutAhead, part);
      const auto gate = apply_act<kNarrow<T>>(kind.value, get(args.gate + i, part));
      put(args.y + i, mul(gate, get(args.up + i, part)), part);
    });
  });
}

// dgate (+)= dy * up * act'(gate), dup (+)= dy * act(gate); either may be null.
template <class T> void glu_backward(const GluArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  with_act(args.act, [&](auto kind) {
    each_many(range.begin, range.end, [&](int64_t i, auto part) MG_ALWAYS {
      if (args.dup) ask_to_write(args.dup + i + kPutAhead, part);
      if (args.dgate) ask_to_write(args.dgate + i + kPutAhead, part);
      const auto dy = get(args.dy + i, part), gate = get(args.gate + i, part);
      const auto up = args.dgate ? get(args.up + i, part) : dy;
      const auto at_gate = act_pair<kNarrow<T>>(kind.value, gate);
      if (args.dup) store_or_add(args.dup + i, mul(dy, at_gate.value), args.accumulate_dup, part);
      if (args.dgate) store_or_add(args.dgate + i, mul(mul(dy, up), at_gate.slope), args.accumulate_dgate, part);
    });
  });
}

// Dropout's random bits (core/rng.h). kVecs vectors of counters from `counter` on, a multiple of as many, go through the rounds
// together: words 0 and 1 of each to `low`, 2 and 3 to `high`. Two of the first four products are one number for all, as they have
// the upper half and the stream in common. What stands above a word in its lane is ignored by mul_words and dropped at the end.
// beside(step) is called in each of kPhiloxSteps rounds.
struct PhiloxKeys {
  uint64_t first[10], second[10];
};
static inline PhiloxKeys philox_keys(uint64_t key) {
  PhiloxKeys keys;
  for (uint32_t round = 0; round < 10; ++round) {
    keys.first[round] = (uint32_t)key + round * 0x9E3779B9u;
    keys.second[round] = (uint32_t)(key >> 32) + round * 0xBB67AE85u;
  }
  return keys;
}
constexpr int kPhiloxSteps = 8;
template <int kVecs, class Beside>
MG_INLINE void philox_vectors(const PhiloxKeys& keys, uint64_t counter, uint64_t stream, Words64* low, Words64* high,
                              const Beside& beside) {
  alignas(64) static constexpr uint64_t places[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  constexpr uint64_t kFactor0 = 0xD2511F53u, kFactor1 = 0xCD9E8D57u;
  const Words64 zeros = {}, factor0 = zeros + kFactor0, factor1 = zeros + kFactor1;
  const uint64_t all1 = kFactor1 * (uint32_t)stream;
  const uint64_t all0 = kFactor0 * (uint32_t)(all1 >> 32 ^ counter >> 32 ^ keys.first[0]);
  Words64 c0[kVecs], c1[kVecs], c2[kVecs], c3[kVecs];
#pragma GCC unroll 4
  for (int g = 0; g < kVecs; ++g) {
    Words64 place;
    memcpy(&place, places + g * kWidth / 2, sizeof place);
    const Words64 p0 = mul_words(place + counter, factor0);
    const Words64 p1 = mul_words((p0 >> 32) ^ (stream >> 32 ^ keys.second[0]), factor1);
    c0[g] = (p1 >> 32) ^ (all1 ^ keys.first[1]);
    c1[g] = p1;
    c2[g] = p0 ^ (all0 >> 32 ^ keys.second[1]);
    c3[g] = zeros + all0;
  }
#pragma GCC unroll 1
  for (int round = 2; round < 10; ++round) {
#pragma GCC unroll 4
    for (int g = 0; g < kVecs; ++g) {
      const Words64 p0 = mul_words(c0[g], factor0), p1 = mul_words(c2[g], factor1);
      c0[g] = xor3(p1 >> 32, c1[g], zeros + keys.first[round]);
      c2[g] = xor3(p0 >> 32, c3[g], zeros + keys.second[round]);
      c1[g] = p1;
      c3[g] = p0;
    }
    beside(round - 2);
  }
#pragma GCC unroll 4
  for (int g = 0; g < kVecs; ++g) {
    low[g] = low_words(c0[g], c1[g]);
    high[g] = low_words(c2[g], c3[g]);
  }
}

// A block's bits, 16 each, side by side; beside(step) in each of kDrawSteps steps.
constexpr int kDrawn = kDropoutBlock / (int)sizeof(Words64);  // vectors of words 0 and 1
constexpr int kDrawnTogether = kRegisters >= 32 ? 4 : 2;      // their states are four vectors each
constexpr int kDrawSteps = kDrawn / kDrawnTogether * kPhiloxSteps;
template <class Beside>
MG_INLINE void draw_block(const PhiloxKeys& keys, int64_t block, uint64_t stream, Words64* bits, const Beside& beside) {
  if constexpr (kWidth == 4) {  // two lanes of 64 bits are slower than none
    for (int step = 0; step < kDrawSteps; ++step) beside(step);
    for (int i = 0; i < kDropoutCounters; ++i) {
      const Philox4 words = philox4x32(keys.first[0] | keys.second[0] << 32, (uint64_t)(block * kDropoutCounters + i), stream);
      memcpy((char*)bits + 8 * i, words.v, 8);
      memcpy((char*)(bits + kDrawn) + 8 * i, words.v + 2, 8);
    }
  } else {
#pragma GCC unroll 1
    for (int i = 0; i < kDrawn; i += kDrawnTogether) {
      const uint64_t counter = (uint64_t)(block * kDropoutCounters + i * kWidth / 2);
      philox_vectors<kDrawnTogether>(keys, counter, stream, bits + i, bits + kDrawn + i,
                                     [&](int step) MG_ALWAYS { beside(i / kDrawnTogether * kPhiloxSteps + step); });
    }
  }
}

// y (+)= kept ? x / (1 - p) : 0. A dropped NaN or infinity is gone. kGrain is a multiple of kDropoutBlock.
template <class T> void dropout(const DropoutArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  const uint32_t threshold = dropout_threshold(args.p);
  const uint64_t stream = dropout_high(args.stream, args.step[0]);
  const Vec scale = set1(args.p < 1.0 ? (float)(1.0 / (1.0 - args.p)) : 0.0f);
  const PhiloxKeys keys = philox_keys(args.seed);
  const Keeper keeper{threshold, scale};
  const bool plain = !args.accumulate && threshold <= 0xffff;
  Words64 drawn[2][2 * kDrawn];
  draw_block(keys, range.begin / kDropoutBlock, stream, drawn[0], [](int) MG_ALWAYS {});
  // The next block's bits are drawn beside this one's numbers: arithmetic and memory take turns in the small.
  for (int64_t begin = range.begin, now = 0; begin < range.end; begin += kDropoutBlock, now ^= 1) {
    const int64_t end = begin + kDropoutBlock;
    const char* bits = (const char*)drawn[now];
    const T* x = args.x + begin;
    T* y = args.y + begin;
    if (plain && end <= range.end) {
      constexpr int kStep = kDropoutBlock / kDrawSteps;
      draw_block(keys, end / kDropoutBlock, stream, drawn[now ^ 1],
                 [&](int step) MG_ALWAYS { put_kept<kStep>(y + step * kStep, x + step * kStep, bits + 2 * step * kStep, keeper); });
      continue;
    }
    uint16_t words[kDropoutBlock];
    memcpy(words, bits, sizeof words);
    each_vec(0, end < range.end ? kDropoutBlock : range.end - begin, [&](int64_t i, auto part) {
      const Vec kept = select(words_from(words + i, threshold), mul(get(x + i, part), scale), zero());
      store_or_add(y + i, kept, args.accumulate, part);
    });
    draw_block(keys, end / kDropoutBlock, stream, drawn[now ^ 1], [](int) MG_ALWAYS {});
  }
}

template <class Function> static inline Vec each_lane(Vec x, Function function) {
  float lanes[kWidth];
  store(lanes, x);
  for (int i = 0; i < kWidth; ++i) lanes[i] = function(lanes[i]);
  return load(lanes);
}

template <class T, class Map> static inline void map_range(const UnaryArgs<T>& args, const Share& share, const Map& map) {
  const Range range = range_of(share.index, args.n, kGrain);
  each_vec(range.begin, range.end,
           [&](int64_t i, auto part) { put(args.y + i, map(get(args.x + i, part)), part); });
}

// y = op(x). sin and cos go through libm, lane by lane: they only build tables.
template <class T> void unary(const UnaryArgs<T>& args, const Share& share) {
  const Vec one = set1(1.0f);
  switch (args.op) {
    case Unary::neg: return map_range(args, share, [](Vec x) { return negate(x); });
    case Unary::exp: return map_range(args, share, [](Vec x) { return exp(x); });
    case Unary::log: return map_range(args, share, [](Vec x) { return log(x); });
    case Unary::sqrt: return map_range(args, share, [](Vec x) { return sqrt(x); });
    case Unary::rsqrt: return map_range(args, share, [=](Vec x) { return div(one, sqrt(x)); });
    case Unary::tanh: return map_range(args, share, [](Vec x) { return tanh(x); });
    case Unary::erf: return map_range(args, share, [](Vec x) { return erf(x); });
    case Unary::sigmoid: return map_range(args, share, [](Vec x) { return sigmoid(x); });
    case Unary::square: return map_range(args, share, [](Vec x) { return mul(x, x); });
    case Unary::reciprocal: return map_range(args, share, [=](Vec x) { return div(one, x); });
    case Unary::sin: return map_range(args, share, [](Vec x) { return each_lane(x, [](float v) { return ::sinf(v); }); });
    case Unary::cos: return map_range(args, share, [](Vec x) { return each_lane(x, [](float v) { return ::cosf(v); }); });
  }
}

template <class T> void fill(const FillArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  const Vec value = set1((float)args.value);
  each_vec(range.begin, range.end, [&](int64_t i, auto part) { put(args.y + i, value, part); });
}

// y = alpha * x + beta * y
template <class T> void axpy(const AxpyArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  const Vec alpha = set1((float)(args.alpha * (args.alpha_at ? (double)args.alpha_at[0] : 1.0)));
  const Vec beta = set1((float)args.beta);
  const bool overwrite = args.beta == 0.0;
  each_vec(range.begin, range.end, [&](int64_t i, auto part) {
    const Vec x = get(args.x + i, part);
    put(args.y + i, overwrite ? mul(alpha, x) : fma(alpha, x, mul(beta, get(args.y + i, part))), part);
  });
}

// Every bf16 is a float; the way back rounds.
void cast(const CastArgs<bf16>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  each_vec(range.begin, range.end, [&](int64_t i, auto part) {
    if (args.to_narrow) store_or_add(args.narrow + i, get(args.wide + i, part), args.accumulate, part);
    else store_or_add(args.wide + i, get(args.narrow + i, part), args.accumulate, part);
  });
}

#include "kernels/strided.inl.h"
