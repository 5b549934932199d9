// Portable vectors of four floats: plain C that any compiler lowers to SSE2, NEON or single instructions.
constexpr int kWidth = 4;
struct Vec {
  float v[4];
};
struct Mask {
  bool v[4];
};
#define MG_LANES for (int i = 0; i < 4; ++i)
static inline Vec load(const float* p) { Vec r; MG_LANES r.v[i] = p[i]; return r; }
static inline void store(float* p, Vec a) { MG_LANES p[i] = a.v[i]; }
static inline Vec load_n(const float* p, int64_t n) { Vec r; MG_LANES r.v[i] = i < n ? p[i] : 0.0f; return r; }
static inline void store_n(float* p, Vec a, int64_t n) { for (int i = 0; i < n; ++i) p[i] = a.v[i]; }
static inline Vec load(const bf16* p) { Vec r; MG_LANES r.v[i] = value_of(p[i]); return r; }
static inline void store(bf16* p, Vec a) { MG_LANES assign(p[i], a.v[i]); }
static inline Vec load_n(const bf16* p, int64_t n) { Vec r; MG_LANES r.v[i] = i < n ? value_of(p[i]) : 0.0f; return r; }
static inline void store_n(bf16* p, Vec a, int64_t n) { for (int i = 0; i < n; ++i) assign(p[i], a.v[i]); }
static inline Vec set1(float x) { Vec r; MG_LANES r.v[i] = x; return r; }
static inline Vec zero() { return set1(0.0f); }
static inline Vec add(Vec a, Vec b) { MG_LANES a.v[i] += b.v[i]; return a; }
static inline Vec sub(Vec a, Vec b) { MG_LANES a.v[i] -= b.v[i]; return a; }
static inline Vec mul(Vec a, Vec b) { MG_LANES a.v[i] *= b.v[i]; return a; }
static inline Vec div(Vec a, Vec b) { MG_LANES a.v[i] /= b.v[i]; return a; }
static inline Vec max(Vec a, Vec b) { MG_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline Vec min(Vec a, Vec b) { MG_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline Vec fma(Vec a, Vec b, Vec c) { MG_LANES c.v[i] = a.v[i] * b.v[i] + c.v[i]; return c; }
static inline Vec fnma(Vec a, Vec b, Vec c) { MG_LANES c.v[i] = c.v[i] - a.v[i] * b.v[i]; return c; }
static inline Vec sqrt(Vec a) { MG_LANES a.v[i] = ::sqrtf(a.v[i]); return a; }
static inline Vec abs(Vec a) { MG_LANES a.v[i] = ::fabsf(a.v[i]); return a; }
static inline Vec round_even(Vec a) { MG_LANES a.v[i] = ::nearbyintf(a.v[i]); return a; }
static inline Vec pow2i(Vec n) {
  MG_LANES {
    const uint32_t bits = (uint32_t)((int32_t)n.v[i] + 127) << 23;
    ::memcpy(&n.v[i], &bits, 4);
  }
  return n;
}
static inline Vec exponent(Vec x) {
  MG_LANES {
    uint32_t bits;
    ::memcpy(&bits, &x.v[i], 4);
    x.v[i] = (float)((int32_t)(bits >> 23) - 127);
  }
  return x;
}
static inline Vec mantissa(Vec x) {
  MG_LANES {
    uint32_t bits;
    ::memcpy(&bits, &x.v[i], 4);
    bits = (bits & 0x007fffffu) | 0x3f800000u;
    ::memcpy(&x.v[i], &bits, 4);
  }
  return x;
}
static inline Mask lt(Vec a, Vec b) { Mask m; MG_LANES m.v[i] = a.v[i] < b.v[i]; return m; }
static inline Mask le(Vec a, Vec b) { Mask m; MG_LANES m.v[i] = a.v[i] <= b.v[i]; return m; }
static inline Mask eq(Vec a, Vec b) { Mask m; MG_LANES m.v[i] = a.v[i] == b.v[i]; return m; }
static inline Vec select(Mask m, Vec yes, Vec no) { MG_LANES no.v[i] = m.v[i] ? yes.v[i] : no.v[i]; return no; }
static inline float hsum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
static inline float hmax(Vec a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}
#undef MG_LANES
typedef uint64_t Words64 __attribute__((vector_size(16)));
static inline Words64 mul_words(Words64 a, Words64 b) { return (a & 0xffffffffull) * (b & 0xffffffffull); }
