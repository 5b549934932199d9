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
      const auto dy = get(args.dy + i, part), gate = get(args.gate + i, part);
      const auto up = args.dgate ? get(args.up + i, part) : dy;
      const auto at_gate = act_pair<kNarrow<T>>(kind.value, gate);
      if (args.dup) store_or_add(args.dup + i, mul(dy, at_gate.value), args.accumulate_dup, part);
      if (args.dgate) store_or_add(args.dgate + i, mul(mul(dy, up), at_gate.slope), args.accumulate_dgate, part);
    });
  });
}

// Philox (core/rng.h) at `count` counters: words 0 and 1 of each to `low`, 2 and 3 to `high`. Wide vectors take several
// (the state is four vectors each, of 32 or 16 registers); what stands above a word in its lane is ignored by mul_words and dropped at the end.
constexpr int kPhiloxVecs = kWidth == 16 ? 4 : 2;
constexpr int kPhiloxCounters = kWidth == 4 ? 1 : kPhiloxVecs * kWidth / 2;
static inline void philox_lanes(uint64_t key, uint64_t counter, uint64_t stream, uint64_t* low, uint64_t* high) {
  if constexpr (kWidth == 4) {
    const Philox4 words = philox4x32(key, counter, stream);
    memcpy(low, words.v, 8);
    memcpy(high, words.v + 2, 8);
  } else {
    Words64 c0[kPhiloxVecs], c1[kPhiloxVecs], c2[kPhiloxVecs], c3[kPhiloxVecs];
    uint64_t counters[kPhiloxCounters];
    for (int i = 0; i < kPhiloxCounters; ++i) counters[i] = counter + (uint64_t)i;
    for (int g = 0; g < kPhiloxVecs; ++g) {
      memcpy(&c0[g], counters + g * kWidth / 2, sizeof(Words64));
      c1[g] = c0[g] >> 32;
      c2[g] = Words64{} + stream;
      c3[g] = Words64{} + (stream >> 32);
    }
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma GCC unroll 1
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
      for (int g = 0; g < kPhiloxVecs; ++g) {
        const Words64 p0 = mul_words(c0[g], Words64{} + 0xD2511F53ull), p1 = mul_words(c2[g], Words64{} + 0xCD9E8D57ull);
        c0[g] = (p1 >> 32) ^ c1[g] ^ (Words64{} + (uint64_t)k0);
        c2[g] = (p0 >> 32) ^ c3[g] ^ (Words64{} + (uint64_t)k1);
        c1[g] = p1;
        c3[g] = p0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
#pragma GCC unroll 4
    for (int g = 0; g < kPhiloxVecs; ++g) {
      const Words64 word = Words64{} + 0xffffffffull;
      const Words64 first = (c0[g] & word) | (c1[g] << 32), second = (c2[g] & word) | (c3[g] << 32);
      memcpy(low + g * kWidth / 2, &first, sizeof first);
      memcpy(high + g * kWidth / 2, &second, sizeof second);
    }
  }
}

// y (+)= kept ? x / (1 - p) : 0. A dropped NaN or infinity is gone. kGrain is a multiple of kDropoutBlock.
template <class T> void dropout(const DropoutArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  const uint32_t threshold = dropout_threshold(args.p);
  const uint64_t stream = dropout_high(args.stream, args.step[0]);
  const Vec scale = set1(args.p < 1.0 ? (float)(1.0 / (1.0 - args.p)) : 0.0f);
  for (int64_t begin = range.begin; begin < range.end; begin += kDropoutBlock) {
    alignas(64) uint64_t words[2 * kDropoutCounters];
    alignas(64) uint16_t bits[kDropoutBlock];
    for (int i = 0; i < kDropoutCounters; i += kPhiloxCounters)
      philox_lanes(args.seed, (uint64_t)(begin / kDropoutBlock * kDropoutCounters + i), stream, words + i,
                   words + kDropoutCounters + i);
    memcpy(bits, words, sizeof bits);
    const int64_t end = begin + kDropoutBlock < range.end ? begin + kDropoutBlock : range.end;
    each_vec(begin, end, [&](int64_t i, auto part) {
      const Vec y = mul(get(args.x + i, part), scale);
      store_or_add(args.y + i, select(words_from(bits + (i - begin), threshold), y, zero()), args.accumulate, part);
    });
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
