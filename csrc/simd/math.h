// exp, log, tanh, erf, sigmoid and the activations on the vector contract, written once for every target. Polynomials are
// minimax fits of our own. Errors in ulp, measured against double over every 61st float: target with fma / scalar.
// NaN gives NaN everywhere; infinities give the limits.

static inline Vec clamp(Vec x, float lo, float hi) { return min(set1(hi), max(set1(lo), x)); }  // keeps NaN
static inline Vec negate(Vec x) { return mul(x, set1(-1.0f)); }

// c[0] + c[1] x + ... + c[N-1] x^(N-1)
template <int N> static inline Vec horner(Vec x, const float (&c)[N]) {
  Vec r = set1(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) r = fma(r, x, set1(c[i]));
  return r;
}

// Error 1.00 / 0.97. Results below the smallest normal (x < -87.3365) are 0: a denormal would cost ~150 cycles on some
// machines, and attention takes exp(-inf) for every masked score.
static inline Vec exp(Vec x) {
  static constexpr float c[] = {0.49999994f, 0.166665211f, 0.0416682921f, 0.00836871564f, 0.00138186978f};
  // n stays in [-126, 128], also for NaN, so that the integer conversion in pow2i is always defined.
  const Vec n = max(min(round_even(mul(x, set1(1.44269504f))), set1(128.0f)), set1(-126.0f));
  // ln 2 in two parts; the first has 10 bits, so n times it is exact even without fma.
  const Vec r = fnma(n, set1(-2.12194440e-4f), fnma(n, set1(0.693359375f), x));
  const Vec p = add(fma(mul(r, r), horner(r, c), r), set1(1.0f));
  const Vec low = min(n, set1(127.0f));  // 2^128 is not a float: the last doubling is y * 1 + y
  const Vec y = mul(p, pow2i(low));
  return select(lt(x, set1(-87.3365448f)), zero(), fma(y, sub(n, low), y));
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

// 2^x, relative error 1.7e-7 (2.1 ulp; 9.2e-8 of it from a fit of our own); 0 where the result would be below the smallest
// normal, for masked scores above all. 2^0 is 1.
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
static inline Vec power_of_two(Vec x) {
  static constexpr float c[] = {0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151299f, 0.00132647273f};
  const Vec n = round_even(x), r = sub(x, n), p = fma(horner(r, c), r, set1(1.0f));
#if defined(__AVX512F__)
  const Vec y = {_mm512_scalef_ps(p.v, n.v)};
#else
  const Vec y = mul(p, pow2i(min(set1(127.0f), max(set1(-126.0f), n))));
#endif
  return select(lt(x, set1(-126.0f)), zero(), y);
}

// Error 2.37 / 2.37 where the result is normal. kRounded, here and below: the result becomes a bfloat16, so that exponentials
// may be taken in base 2 without splitting ln 2: a relative error of 6e-8 |x|, half the time.
template <bool kRounded = false> static inline Vec sigmoid(Vec x) {
  const Vec one = set1(1.0f);
  if constexpr (kRounded) return div(one, add(one, power_of_two(min(set1(128.0f), mul(x, set1(-kLog2E))))));
  return div(one, add(one, exp(negate(x))));
}

// sqrt(2 / pi) * 2 and sqrt(2 / pi) * 2 * 0.044715: gelu_tanh(x) = x * sigmoid(kGeluA x + kGeluB x^3)
constexpr float kGeluA = 1.59576912f, kGeluB = 0.0713548163f;
constexpr float kInvSqrt2Pi = 0.398942280f;

// The normal distribution and its density: Phi(-t) = density * u * polynomial(u), u = 1 / (1 + 0.34 t), a fit of Mills'
// ratio within 5.4e-8 of its value, so that the lower tail keeps its digits and one exponential serves both.
struct Normal {
  Vec cdf, density;
};
template <bool kRounded> static inline Normal normal_of(Vec x) {
  static constexpr float c[] = {0.339950204f, 0.341182679f,  0.288757682f, 0.289162606f,  -0.112092748f,
                                0.506797135f, -0.684642613f, 0.349673569f, -0.0654743686f};
  const Vec one = set1(1.0f);
  const Vec square = mul(x, x);
  const Vec power = kRounded ? power_of_two(mul(square, set1(-0.5f * kLog2E))) : exp(mul(square, set1(-0.5f)));
  const Vec density = mul(set1(kInvSqrt2Pi), power);
  const Vec u = div(one, fma(abs(x), set1(0.34f), one));
  const Vec tail = mul(density, mul(u, horner(u, c)));
  return {select(lt(x, zero()), tail, sub(one, tail)), density};
}
// The exponent has a rounding of its own size anyway, so it is taken in base 2 for every type.
static inline Vec gelu_tanh_gate(Vec x) {
  const Vec one = set1(1.0f), exponent = mul(x, fma(mul(x, x), set1(-kGeluB * kLog2E), set1(-kGeluA * kLog2E)));
  return div(one, add(one, power_of_two(min(set1(128.0f), exponent))));
}

// An activation at x and its derivative there; whichever is not used is not computed.
struct ActPair {
  Vec value, slope;
};
template <bool kRounded = false> static inline ActPair act_pair(Act act, Vec x) {
  const Vec one = set1(1.0f);
  switch (act) {
    case Act::none: return {x, one};
    case Act::gelu: {
      const Normal normal = normal_of<kRounded>(x);
      return {mul(x, normal.cdf), fma(x, normal.density, normal.cdf)};
    }
    case Act::gelu_tanh: {
      const Vec t = clamp(x, -12.0f, 12.0f);  // the gate is 0 or 1 beyond, and x^3 would overflow
      const Vec gate = gelu_tanh_gate(t), slope = fma(mul(t, t), set1(3.0f * kGeluB), set1(kGeluA));
      return {mul(x, gate), fma(mul(mul(t, gate), sub(one, gate)), slope, gate)};
    }
    case Act::relu: return {max(zero(), x), select(le(x, zero()), zero(), one)};  // slope 0 at the kink
    case Act::relu2: {
      const Vec r = max(zero(), x);
      return {mul(r, r), add(r, r)};
    }
    case Act::silu: {
      const Vec gate = sigmoid<kRounded>(x);
      return {mul(x, gate), mul(gate, fma(x, sub(one, gate), one))};
    }
  }
  return {x, one};
}
template <bool kRounded = false> static inline Vec apply_act(Act act, Vec x) { return act_pair<kRounded>(act, x).value; }
// d act / dx at x, the value before the activation.
template <bool kRounded = false> static inline Vec act_grad(Act act, Vec x) { return act_pair<kRounded>(act, x).slope; }
