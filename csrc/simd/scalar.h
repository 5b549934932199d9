// Portable vectors of four floats, in GNU vector types that any compiler lowers to SSE2, NEON or single instructions. (Loops
// over arrays of four are lowered too, but one by one: the file then took ten times as long to compile.)
constexpr int kWidth = 4;
constexpr int kRegisters = 16;
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Words __attribute__((vector_size(16)));
struct Vec {
  Floats v;
};
struct Mask {
  Words v;
};
#define MG_LANES for (int i = 0; i < 4; ++i)
static inline Words words_of(Vec a) { return (Words)a.v; }
static inline Vec load(const float* p) { Vec r; ::memcpy(&r.v, p, sizeof r.v); return r; }
static inline void store(float* p, Vec a) { ::memcpy(p, &a.v, sizeof a.v); }
static inline Vec load_two(const float* low, const float* high) {
  Vec r;
  MG_LANES r.v[i] = i < kWidth / 2 ? low[i] : high[i - kWidth / 2];
  return r;
}
static inline Vec load_n(const float* p, int64_t n) { Vec r; MG_LANES r.v[i] = i < n ? p[i] : 0.0f; return r; }
static inline void store_n(float* p, Vec a, int64_t n) { MG_LANES if (i < n) p[i] = a.v[i]; }
static inline Vec load(const bf16* p) { Vec r; MG_LANES r.v[i] = value_of(p[i]); return r; }
static inline void store(bf16* p, Vec a) { MG_LANES assign(p[i], a.v[i]); }
static inline Vec load_n(const bf16* p, int64_t n) { Vec r; MG_LANES r.v[i] = i < n ? value_of(p[i]) : 0.0f; return r; }
static inline void store_n(bf16* p, Vec a, int64_t n) { MG_LANES if (i < n) assign(p[i], a.v[i]); }
static inline Vec load(const int8_t* p) { Vec r; MG_LANES r.v[i] = (float)p[i]; return r; }
static inline Vec load_n(const int8_t* p, int64_t n) { Vec r; MG_LANES r.v[i] = i < n ? (float)p[i] : 0.0f; return r; }
static inline void store_bytes(int8_t* p, Vec a) { MG_LANES p[i] = a.v[i] > -128.0f && a.v[i] < 128.0f ? (int8_t)(int32_t)a.v[i] : (int8_t)0; }
static inline Vec set1(float x) { return {Floats{x, x, x, x}}; }
static inline Vec zero() { return {Floats{}}; }
static inline Vec add(Vec a, Vec b) { return {a.v + b.v}; }
static inline Vec sub(Vec a, Vec b) { return {a.v - b.v}; }
static inline Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
static inline Vec div(Vec a, Vec b) { return {a.v / b.v}; }
static inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
static inline Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
static inline Vec fnma(Vec a, Vec b, Vec c) { return {c.v - a.v * b.v}; }
static inline Vec sqrt(Vec a) { MG_LANES a.v[i] = ::sqrtf(a.v[i]); return a; }
static inline Vec abs(Vec a) { return {(Floats)(words_of(a) & 0x7fffffff)}; }
static inline Vec round_even(Vec a) { MG_LANES a.v[i] = ::nearbyintf(a.v[i]); return a; }
static inline Vec pow2i(Vec n) { return {(Floats)((__builtin_convertvector(n.v, Words) + 127) << 23)}; }
static inline Vec exponent(Vec x) { return {__builtin_convertvector((words_of(x) >> 23) - 127, Floats)}; }
static inline Vec mantissa(Vec x) { return {(Floats)((words_of(x) & 0x007fffff) | 0x3f800000)}; }
static inline Mask lt(Vec a, Vec b) { return {a.v < b.v}; }
static inline Mask le(Vec a, Vec b) { return {a.v <= b.v}; }
static inline Mask eq(Vec a, Vec b) { return {a.v == b.v}; }
static inline Vec select(Mask m, Vec yes, Vec no) { return {m.v ? yes.v : no.v}; }
static inline float hsum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
static inline float hmax(Vec a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}
#undef MG_LANES
typedef uint64_t Words64 __attribute__((vector_size(16)));
static inline Words64 mul_words(Words64 a, Words64 b) { return (a & 0xffffffffull) * (b & 0xffffffffull); }
static inline Words64 xor3(Words64 a, Words64 b, Words64 c) { return a ^ b ^ c; }
static inline Words64 low_words(Words64 a, Words64 b) { return (a & (Words64{} + 0xffffffffull)) | (b << 32); }
static inline Mask words_from(const uint16_t* words, uint32_t threshold) {
  return {Words{words[0], words[1], words[2], words[3]} >= (int32_t)threshold};
}
