// exp, log, tanh, erf, sigmoid and the activations on the vector contract, written once for every target. Polynomials are
// minimax fits of our own. Errors in ulp, measured against double over every 61st float: target with fma / scalar.
// NaN gives NaN everywhere; infinities give the limits.

#include "simd/lanes.h"

template <class V> MG_INLINE V clamp(V x, float lo, float hi) { return min(set1(hi), max(set1(lo), x)); }  // keeps NaN
template <class V> MG_INLINE V negate(V x) { return mul(x, set1(-1.0f)); }

// c[0] + c[1] x + ... + c[N-1] x^(N-1)
template <int N, class V> MG_INLINE V horner(V x, const float (&c)[N]) {
  V r = fma(set1(c[N - 1]), x, set1(c[N - 2]));
#pragma GCC unroll 16
  for (int i = N - 3; i >= 0; --i) r = fma(r, x, set1(c[i]));
  return r;
}

#if defined(__AVX512F__)
// y 2^floor(n) of any n, infinities too; the same, but zero where n is below `least`; x - floor(x), 0 for infinities.
static inline Vec scaled(Vec y, Vec n) { return {_mm512_scalef_ps(y.v, n.v)}; }
static inline Vec scaled_from(Vec least, Vec y, Vec n) {
  return {_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n.v, least.v, _CMP_NLT_UQ), y.v, n.v)};
}
static inline Vec fraction(Vec x) { return {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
MG_MANY(Vecs, scaled)
MG_MANY(Vecs, scaled_from)
MG_MANY(Vecs, fraction)
#endif

// Error 1.00 / 0.97. Results below the smallest normal (x < -87.3365) are 0: a denormal would cost ~150 cycles on some
// machines, and attention takes exp(-inf) for every masked score.
template <class V> MG_INLINE V exp(V x) {
  static constexpr float c[] = {0.49999994f, 0.166665211f, 0.0416682921f, 0.00836871564f, 0.00138186978f};
#if defined(__AVX512F__)
  const V top = min(set1(89.0f), x), n = round_even(mul(top, set1(1.44269504f)));
#else
  // n stays in [-126, 128], also for NaN, so that the integer conversion in pow2i is always defined.
  const V top = x, n = max(min(round_even(mul(x, set1(1.44269504f))), set1(128.0f)), set1(-126.0f));
#endif
  // ln 2 in two parts; the first has 10 bits, so n times it is exact even without fma.
  const V r = fnma(n, set1(-2.12194440e-4f), fnma(n, set1(0.693359375f), top));
  const V p = add(fma(mul(r, r), horner(r, c), r), set1(1.0f));
#if defined(__AVX512F__)
  const V y = scaled(p, n);
#else
  const V low = min(n, set1(127.0f)), power = mul(p, pow2i(low));
  const V y = fma(power, sub(n, low), power);  // 2^128 is not a float: the last doubling is y * 1 + y
#endif
  return select(lt(x, set1(-87.3365448f)), zero(), y);
}

// Error 0.77 / 0.77, denormals included. log(0) = -inf, log(x < 0) = NaN.
static inline Vec log(Vec x) {
  static constexpr float c[] = {0.333333135f,  -0.250000089f, 0.200020716f,  -0.166679889f, 0.142203584f,
                                -0.124062337f, 0.118835486f,  -0.116700992f, 0.067492716f};
  const Mask tiny = lt(x, set1(1.17549435e-38f));
  const Vec scaled = select(tiny, mul(x, set1(16777216.0f)), x);
  const Mask high = lt(set1(1.41421354f), mantissa(scaled));
  const Vec e = add(sub(exponent(scaled), select(tiny, set1(24.0f), zero())), select(high, set1(1.0f), zero()));
  const Vec f = sub(select(high, mul(mantissa(scaled), set1(0.5f)), mantissa(scaled)), set1(1.0f));
  const Vec square = mul(f, f);
  Vec y = mul(mul(square, f), horner(f, c));
  y = fma(e, set1(-2.12194440e-4f), y);
  y = fnma(set1(0.5f), square, y);
  y = fma(e, set1(0.693359375f), add(f, y));
  y = select(lt(x, set1(INFINITY)), y, x);  // inf and NaN pass through
  y = select(lt(x, zero()), set1(NAN), y);
  return select(eq(x, zero()), set1(-INFINITY), y);
}

// Error 1.30 / 1.30.
static inline Vec tanh(Vec x) {
  static constexpr float c[] = {-0.333332807f, 0.133314058f, -0.0537365153f, 0.0206281673f, -0.0056922962f};
  const Vec t = abs(x), square = mul(x, x);
  const Vec small = fma(mul(x, square), horner(square, c), x);
  const Vec large = sub(set1(1.0f), div(set1(2.0f), add(exp(add(t, t)), set1(1.0f))));
  return select(lt(t, set1(0.625f)), small, select(lt(x, zero()), negate(large), large));
}

// Error 1.07 / 1.09. Near 0 an odd polynomial; else 1 - exp(polynomial), the fit being of log(erfc).
static inline Vec erf(Vec x) {
  static constexpr float near[] = {0.128379166f,   -0.376126289f,    0.112836257f,   -0.0268557314f,
                                   0.00519240508f, -0.000804976909f, 7.99664194e-05f};
  static constexpr float far[] = {-0.128514364f, -0.635718286f,   -0.105261914f,
                                  0.0228900388f, -0.00321499095f, 0.000213991167f};
  const Vec t = min(set1(4.0f), abs(x));  // erf(4) rounds to 1
  const Vec small = fma(x, horner(mul(t, t), near), x);
  const Vec large = sub(set1(1.0f), exp(sub(mul(t, horner(t, far)), t)));
  return select(lt(t, set1(0.93f)), small, select(lt(x, zero()), negate(large), large));
}

// 2^x, relative error 1.7e-7 (2.1 ulp; 9.2e-8 of it from a fit of our own), with AVX-512 1.9e-7 (8.3e-8); 0 where the result
// would be below the smallest normal, for masked scores above all. 2^0 is 1.
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
template <class V> MG_INLINE V power_of_two(V x) {
#if defined(__AVX512F__)
  static constexpr float c[] = {0.69315135f, 0.2401644f, 0.0557999f, 0.00901703f, 0.0018671303f};  // on [0, 1]
  const V r = fraction(x);
  return scaled_from(set1(-126.0f), fma(horner(r, c), r, set1(1.0f)), x);
#else
  static constexpr float c[] = {0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151299f, 0.00132647273f};
  const V n = round_even(x), r = sub(x, n), p = fma(horner(r, c), r, set1(1.0f));
  const V y = mul(p, pow2i(min(set1(127.0f), max(set1(-126.0f), n))));
  return select(lt(x, set1(-126.0f)), zero(), y);
#endif
}

// 2^x for what becomes a bfloat16 (half an ulp is 2^-9): relative error 2.7e-6, 2^-18.5. infinity for x >= 128, no more than 2^-126
// far below.
template <class V> MG_INLINE V coarse_power_of_two(V x) {
  static constexpr float c[] = {1.00000262f, 0.693003833f, 0.241442755f, 0.0520114601f, 0.0135341678f};  // on [0, 1]
#if defined(__AVX512F__)
  return scaled(horner(fraction(x), c), x);
#else
  const V t = clamp(x, -126.0f, 128.5f), n = max(round_even(sub(t, set1(0.5f))), set1(-126.0f));  // as in exp
  const V low = min(n, set1(127.0f)), y = mul(horner(sub(t, n), c), pow2i(low));
  return fma(y, sub(n, low), y);
#endif
}

// 1 / x for what becomes a bfloat16: relative error 2^-14 at most.
#if defined(__AVX512F__)
static inline Vec coarse_reciprocal(Vec x) { return {_mm512_rcp14_ps(x.v)}; }
MG_MANY(Vecs, coarse_reciprocal)
#else
template <class V> MG_INLINE V coarse_reciprocal(V x) { return div(set1(1.0f), x); }
#endif

// 2^x for -126 <= x <= 126, relative error 1.6e-7, and 1 / x for normal x up to 2^126, error 1: where AVX-512 has shorter ways.
#if defined(__AVX512F__)
template <class V> MG_INLINE V bounded_power_of_two(V x) {
  static constexpr float c[] = {0.99999994f, 0.693153083f, 0.240153611f, 0.0558263175f, 0.00898933969f, 0.00187757763f};  // on [0, 1]
  return scaled(horner(fraction(x), c), x);
}
template <class V> MG_INLINE V reciprocal(V x) {
  const V near = coarse_reciprocal(x);
  return fma(near, fnma(x, near, set1(1.0f)), near);
}
#else
template <class V> MG_INLINE V bounded_power_of_two(V x) { return power_of_two(x); }
template <class V> MG_INLINE V reciprocal(V x) { return div(set1(1.0f), x); }
#endif

// Error 2.37 where the result is normal.
template <class V> MG_INLINE V sigmoid(V x) {
  const Vec one = set1(1.0f);
  return div(one, add(one, exp(negate(x))));
}

// gelu_tanh(x) = x / (1 + 2^(x (kGeluA + kGeluB x^2))): -2 sqrt(2 / pi) / ln 2, and that times 0.044715
constexpr float kGeluA = -2.30220819f, kGeluB = -0.102943239f;
constexpr float kInvSqrt2Pi = 0.398942280f;

// The normal distribution and its density: Phi(-t) = density * u * polynomial(u), u = 1 / (1 + a t), a fit of Mills' ratio,
// so that the lower tail keeps its digits and one exponential serves both. a = 0.34, within 5.4e-8 of the value; for what
// becomes a bfloat16 a = 0.3, within 8.3e-6.
template <class V> struct Normal {
  V cdf, density;
};
template <bool kRounded, class V> MG_INLINE Normal<V> normal_of(V x) {
  static constexpr float fine[] = {0.339950204f, 0.341182679f,  0.288757682f, 0.289162606f,  -0.112092748f,
                                   0.506797135f, -0.684642613f, 0.349673569f, -0.0654743686f};
  static constexpr float coarse[] = {0.300981462f, 0.285108805f, 0.36144641f, -0.0424818285f, 0.541523874f, -0.193254322f};
  const Vec one = set1(1.0f);
  const V square = mul(x, x);
  const V power = kRounded ? coarse_power_of_two(mul(square, set1(-0.5f * kLog2E))) : exp(mul(square, set1(-0.5f)));
  const V density = mul(set1(kInvSqrt2Pi), power);
  const V u = div(one, fma(abs(x), set1(kRounded ? 0.3f : 0.34f), one));
  const V tail = mul(density, mul(u, kRounded ? horner(u, coarse) : horner(u, fine)));
  return {select(lt(x, zero()), tail, sub(one, tail)), density};
}

// x * value, and what the derivative needs too: value = 1 / (1 + power). kRounded: what is made of it becomes a bfloat16. Then the
// argument of base 2 of SiLU is off by 2^-24 of it, and so is gelu_tanh's always, which is no more than its own rounding.
template <class V> struct Gate {
  V power, value;
};
template <bool kRounded, class V> MG_INLINE Gate<V> gate_of(V power) {
  const V sum = add(set1(1.0f), power);
  if constexpr (kRounded) return {power, coarse_reciprocal(sum)};
  else return {power, reciprocal(sum)};
}
template <bool kRounded, class V> MG_INLINE Gate<V> gelu_tanh_gate(V x) {
  const V z = mul(x, fma(mul(x, x), set1(kGeluB), set1(kGeluA)));
  if constexpr (kRounded) return gate_of<true>(coarse_power_of_two(z));
  else return gate_of<false>(bounded_power_of_two(z));
}
template <bool kRounded, class V> MG_INLINE Gate<V> silu_gate(V x) {
  if constexpr (kRounded) return gate_of<true>(coarse_power_of_two(mul(x, set1(-kLog2E))));
  else return gate_of<false>(exp(negate(x)));
}

// `value` in every lane, as wide as x.
MG_INLINE Vec same(Vec, float value) { return set1(value); }
MG_INLINE Vecs same(const Vecs&, float value) { return many(set1(value)); }

// An activation at x and its derivative there; whichever is not used is not computed.
template <class V> struct ActPair {
  V value, slope;
};
template <bool kRounded = false, class V> MG_INLINE ActPair<V> act_pair(Act act, V x) {
  const Vec one = set1(1.0f);
  switch (act) {
    case Act::none: return {x, same(x, 1.0f)};
    case Act::gelu: {
      const Normal<V> normal = normal_of<kRounded>(x);
      return {mul(x, normal.cdf), fma(x, normal.density, normal.cdf)};
    }
    case Act::gelu_tanh: {
      // The gate is 0 or 1 beyond; x^3 would overflow, and power stays finite.
      const V low = max(set1(-10.0f), x), t = min(set1(10.0f), low);
      const Gate<V> gate = gelu_tanh_gate<kRounded>(t);
      const V slope = fma(mul(t, t), set1(-3.0f * kGeluB * kLn2), set1(-kGeluA * kLn2));
      return {mul(low, gate.value), fma(mul(mul(t, gate.value), mul(gate.value, gate.power)), slope, gate.value)};
    }
    case Act::relu: return {max(zero(), x), select(le(x, zero()), zero(), one)};  // slope 0 at the kink
    case Act::relu2: {
      const V r = max(zero(), x);
      return {mul(r, r), add(r, r)};
    }
    case Act::silu: {
      const V t = max(set1(-87.0f), x);
      const Gate<V> gate = silu_gate<kRounded>(t);
      return {mul(t, gate.value), mul(gate.value, fma(t, mul(gate.value, gate.power), one))};
    }
  }
  return {x, x};
}
template <bool kRounded = false, class V> MG_INLINE V apply_act(Act act, V x) {
  if constexpr (kRounded) {  // without the limits that the slope needs
    if (act == Act::gelu_tanh) return mul(x, gelu_tanh_gate<true>(x).value);
    if (act == Act::silu) return mul(x, silu_gate<true>(x).value);
  }
  return act_pair<kRounded>(act, x).value;
}
// d act / dx at x, the value before the activation.
template <bool kRounded = false, class V> MG_INLINE V act_grad(Act act, V x) { return act_pair<kRounded>(act, x).slope; }
