// NEON of AArch64, part of its base architecture: four floats in 32 registers.
#define MG_NEON  // for headers that are not of one target
constexpr int kWidth = 4;
constexpr int kRegisters = 32;
struct Vec {
  float32x4_t v;
};
struct Mask {
  uint32x4_t v;
};
static inline Vec load(const float* p) { return {vld1q_f32(p)}; }
static inline void store(float* p, Vec a) { vst1q_f32(p, a.v); }
static inline Vec load_two(const float* low, const float* high) { return {vcombine_f32(vld1_f32(low), vld1_f32(high))}; }
// No masked loads: whole vectors are asked for first, because most calls with a count have one.
static inline Vec load_n(const float* p, int64_t n) {
  if (n >= kWidth) return load(p);
  const float32x2_t none = vdup_n_f32(0.0f);
  const float32x2_t low = n >= 2 ? vld1_f32(p) : n == 1 ? vld1_lane_f32(p, none, 0) : none;
  return {vcombine_f32(low, n == 3 ? vld1_lane_f32(p + 2, none, 0) : none)};
}
static inline void store_n(float* p, Vec a, int64_t n) {
  if (n >= kWidth) return store(p, a);
  if (n >= 2) vst1_f32(p, vget_low_f32(a.v));
  if (n == 1) vst1q_lane_f32(p, a.v, 0);
  if (n == 3) vst1q_lane_f32(p + 2, a.v, 2);
}
static inline Vec widen(uint16x4_t halves) { return {vreinterpretq_f32_u32(vshll_n_u16(halves, 16))}; }
static inline uint16x4_t narrowed(Vec a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v), high = vshrq_n_u32(bits, 16);
  const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
  return vmovn_u32(vbslq_u32(vceqq_f32(a.v, a.v), rounded, vorrq_u32(high, vdupq_n_u32(0x40))));
}
static inline Vec load(const bf16* p) { return widen(vld1_u16(&p->bits)); }
static inline void store(bf16* p, Vec a) { vst1_u16(&p->bits, narrowed(a)); }
static inline Vec load_n(const bf16* p, int64_t n) {
  if (n >= kWidth) return load(p);
  uint16x4_t halves = vdup_n_u16(0);
  if (n > 0) halves = vld1_lane_u16(&p[0].bits, halves, 0);
  if (n > 1) halves = vld1_lane_u16(&p[1].bits, halves, 1);
  if (n > 2) halves = vld1_lane_u16(&p[2].bits, halves, 2);
  return widen(halves);
}
static inline void store_n(bf16* p, Vec a, int64_t n) {
  if (n >= kWidth) return store(p, a);
  const uint16x4_t halves = narrowed(a);
  if (n > 0) vst1_lane_u16(&p[0].bits, halves, 0);
  if (n > 1) vst1_lane_u16(&p[1].bits, halves, 1);
  if (n > 2) vst1_lane_u16(&p[2].bits, halves, 2);
}
static inline Vec load(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))))};
}
static inline Vec load_n(const int8_t* p, int64_t n) {
  int8_t lanes[4] = {};
  for (int64_t i = 0; i < n && i < 4; ++i) lanes[i] = p[i];
  return load(lanes);
}
static inline void store_bytes(int8_t* p, Vec a) {
  const int16x4_t shorts = vmovn_s32(vcvtq_s32_f32(a.v));
  const int32_t word = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(shorts, shorts))), 0);
  memcpy(p, &word, sizeof word);
}
static inline Vec set1(float x) { return {vdupq_n_f32(x)}; }
static inline Vec zero() { return {vdupq_n_f32(0.0f)}; }
static inline Vec add(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
static inline Vec sub(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
static inline Vec mul(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
static inline Vec div(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
// Not FMAX and FMIN, which give NaN if either operand is one.
static inline Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
static inline Vec fnma(Vec a, Vec b, Vec c) { return {vfmsq_f32(c.v, a.v, b.v)}; }
static inline Vec sqrt(Vec a) { return {vsqrtq_f32(a.v)}; }
static inline Vec abs(Vec a) { return {vabsq_f32(a.v)}; }
static inline Vec round_even(Vec a) { return {vrndnq_f32(a.v)}; }
static inline Vec pow2i(Vec n) {
  const int32x4_t e = vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127));
  return {vreinterpretq_f32_s32(vshlq_n_s32(e, 23))};
}
static inline Vec exponent(Vec x) {
  const int32x4_t e = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_f32(x.v), 23));
  return {vcvtq_f32_s32(vsubq_s32(e, vdupq_n_s32(127)))};
}
static inline Vec mantissa(Vec x) {
  const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(x.v), vdupq_n_u32(0x007fffff));
  return {vreinterpretq_f32_u32(vorrq_u32(bits, vdupq_n_u32(0x3f800000)))};
}
static inline Mask lt(Vec a, Vec b) { return {vcltq_f32(a.v, b.v)}; }
static inline Mask le(Vec a, Vec b) { return {vcleq_f32(a.v, b.v)}; }
static inline Mask eq(Vec a, Vec b) { return {vceqq_f32(a.v, b.v)}; }
static inline Vec select(Mask m, Vec yes, Vec no) { return {vbslq_f32(m.v, yes.v, no.v)}; }
static inline float hsum(Vec a) {
  const float32x2_t s = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
  return vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
}
static inline float hmax(Vec a) { return vmaxvq_f32(a.v); }
typedef uint64_t Words64 __attribute__((vector_size(16)));
static inline Words64 mul_words(Words64 a, Words64 b) {
  return (Words64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}
static inline Words64 xor3(Words64 a, Words64 b, Words64 c) { return a ^ b ^ c; }
static inline Words64 low_words(Words64 a, Words64 b) { return (a & (Words64{} + 0xffffffffull)) | (b << 32); }
static inline Mask words_from(const uint16_t* words, uint32_t threshold) {
  return {vcgeq_u32(vmovl_u16(vld1_u16(words)), vdupq_n_u32(threshold))};
}
