// One value in, one value out. Shares: stretches of kGrain elements of the output. Every lane is loaded before it is
// stored, so an output may be the same array as an input of the same shape.
#include "kernels/loops.inl.h"

// An activation or operation known at compile time, so that the loop holds one and no branch.
template <Act kValue> struct ActIs {
  static constexpr Act value = kValue;
};
template <class Body> static inline void with_act(Act act, const Body& body) {
  switch (act) {
    case Act::none: return body(ActIs<Act::none>{});
    case Act::gelu: return body(ActIs<Act::gelu>{});
    case Act::gelu_tanh: return body(ActIs<Act::gelu_tanh>{});
    case Act::relu: return body(ActIs<Act::relu>{});
    case Act::relu2: return body(ActIs<Act::relu2>{});
    case Act::silu: return body(ActIs<Act::silu>{});
  }
}

// y (+)= act(x)
template <class T> void act(const ActArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  with_act(args.act, [&](auto kind) {
    each_vec(range.begin, range.end, [&](int64_t i, auto part) {
      store_or_add(args.y + i, apply_act(kind.value, get(args.x + i, part)), args.accumulate, part);
    });
  });
}

// dx (+)= dy * act'(x)
template <class T> void act_backward(const ActArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  with_act(args.act, [&](auto kind) {
    each_vec(range.begin, range.end, [&](int64_t i, auto part) {
      const Vec slope = act_grad(kind.value, get(args.x + i, part));
      store_or_add(args.y + i, mul(get(args.dy + i, part), slope), args.accumulate, part);
    });
  });
}

// y = act(gate) * up
template <class T> void glu(const GluArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  with_act(args.act, [&](auto kind) {
    each_vec(range.begin, range.end, [&](int64_t i, auto part) {
      const Vec gate = apply_act(kind.value, get(args.gate + i, part));
      put(args.y + i, mul(gate, get(args.up + i, part)), part);
    });
  });
}

// dgate (+)= dy * up * act'(gate), dup (+)= dy * act(gate); either may be null.
template <class T> void glu_backward(const GluArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  with_act(args.act, [&](auto kind) {
    each_vec(range.begin, range.end, [&](int64_t i, auto part) {
      const Vec dy = get(args.dy + i, part), gate = get(args.gate + i, part);
      const Vec up = args.dgate ? get(args.up + i, part) : zero();
      const ActPair at_gate = act_pair(kind.value, gate);
      if (args.dup) store_or_add(args.dup + i, mul(dy, at_gate.value), args.accumulate_dup, part);
      if (args.dgate) store_or_add(args.dgate + i, mul(mul(dy, up), at_gate.slope), args.accumulate_dgate, part);
    });
  });
}

// y (+)= kept ? x / (1 - p) : 0. A dropped NaN or infinity is gone. kGrain is a multiple of four: shares start at word 0.
template <class T> void dropout(const DropoutArgs<T>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kGrain);
  const uint32_t threshold = dropout_threshold(args.p);
  const uint64_t high = dropout_high(args.stream, args.step[0]);
  const Vec scale = set1(args.p < 1.0 ? (float)(1.0 / (1.0 - args.p)) : 0.0f);
  constexpr int64_t kBlock = 64;
  for (int64_t begin = range.begin; begin < range.end; begin += kBlock) {
    float kept[kBlock];
    for (int64_t i = 0; i < kBlock; i += 4) {
      const Philox4 words = philox4x32(args.seed, (uint64_t)(begin + i) / 4, high);
      for (int k = 0; k < 4; ++k) kept[i + k] = dropout_keep(words.v[k], threshold) ? 1.0f : 0.0f;
    }
    const int64_t end = begin + kBlock < range.end ? begin + kBlock : range.end;
    each_vec(begin, end, [&](int64_t i, auto part) {
      const Vec y = mul(get(args.x + i, part), scale);
      const Vec masked = select(lt(zero(), get(kept + (i - begin), part)), y, zero());
      store_or_add(args.y + i, masked, args.accumulate, part);
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
