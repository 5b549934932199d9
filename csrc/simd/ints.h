// Lanes of 32-bit integers: codes of quantized weights, four in each, and sums of their products. What is arithmetic of lanes
// any compiler lowers; the rest is named where there is an instruction.
typedef int32_t IntLanes __attribute__((vector_size(4 * kWidth)));
typedef uint32_t UnsignedLanes __attribute__((vector_size(4 * kWidth)));
struct Ints {
  IntLanes v;
};
static inline Ints ints(int32_t x) { return {IntLanes{} + x}; }
static inline Ints codes(const uint8_t* p) {
  Ints a;
  memcpy(&a.v, p, sizeof a.v);
  return a;
}
static inline Ints low_codes(Ints a) { return {a.v & 0x0f0f0f0f}; }
static inline Ints high_codes(Ints a) { return {(a.v >> 4) & 0x0f0f0f0f}; }
// Fields of lanes (or of their bytes, as the mask says): those at `shift` moved down, or up by -shift.
static inline Ints field(Ints a, int shift, int32_t mask) { return {(shift < 0 ? a.v << -shift : a.v >> shift) & mask}; }
static inline Ints less(Ints a, Ints b) { return {a.v - b.v}; }
static inline Ints signed_byte(Ints a, int i) { return {(IntLanes)((UnsignedLanes)a.v << (24 - 8 * i)) >> 24}; }  // byte i
static inline Ints shifted(Ints a, int shift) { return {a.v >> shift}; }  // down; what comes in at the top is masked off
static inline Ints raised(Ints a, int shift) { return {a.v << (IntLanes{} + shift)}; }
static inline Ints both(Ints a, Ints b) { return {a.v | b.v}; }
static inline void store(uint8_t* p, Ints a) { memcpy(p, &a.v, sizeof a.v); }
static inline Vec to_floats(Ints a) {
  typedef float FloatLanes __attribute__((vector_size(4 * kWidth)));
  const FloatLanes wide = __builtin_convertvector(a.v, FloatLanes);
  Vec y;
  memcpy(&y, &wide, sizeof y);
  return y;
}
#if defined(__AVX512BW__)
static inline Vec load_halves(const uint8_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline Ints load_shorts(const uint8_t* p) { return {(IntLanes)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
static inline Ints load_bytes(const uint8_t* p) { return {(IntLanes)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
#elif defined(__AVX2__)
static inline Vec load_halves(const uint8_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
static inline Ints load_shorts(const uint8_t* p) { return {(IntLanes)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline Ints load_bytes(const uint8_t* p) { return {(IntLanes)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))}; }
#elif defined(MG_NEON)
static inline Vec load_halves(const uint8_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)))}; }
static inline Ints load_shorts(const uint8_t* p) { return {(IntLanes)vmovl_u16(vreinterpret_u16_u8(vld1_u8(p)))}; }
static inline Ints load_bytes(const uint8_t* p) {
  uint32_t four;
  memcpy(&four, p, 4);
  return {(IntLanes)vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))))};
}
#else
static inline Vec load_halves(const uint8_t* p) {
  float lanes[kWidth];
  for (int i = 0; i < kWidth; ++i) lanes[i] = half_value((uint16_t)(p[2 * i] | p[2 * i + 1] << 8));
  return load(lanes);
}
static inline Ints load_shorts(const uint8_t* p) {
  Ints a;
  for (int i = 0; i < kWidth; ++i) a.v[i] = p[2 * i] | p[2 * i + 1] << 8;
  return a;
}
static inline Ints load_bytes(const uint8_t* p) {
  Ints a;
  for (int i = 0; i < kWidth; ++i) a.v[i] = p[i];
  return a;
}
#endif
// Where sums leave no room for codes of a second quad: what these lie in is loaded again, not kept.
static inline __attribute__((always_inline)) void forget_loads(bool tight) {
  if (tight) __asm__ volatile("" ::: "memory");
}
// table[byte] of bytes below 16.
static inline Ints look_up(const uint8_t* table, Ints a) {
#if defined(__AVX512BW__)
  return {(IntLanes)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), (__m512i)a.v)};
#elif defined(__AVX2__)
  return {(IntLanes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table)), (__m256i)a.v)};
#elif defined(MG_NEON)
  return {(IntLanes)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)a.v)};
#else
  uint8_t bytes[4 * kWidth];
  store(bytes, a);
  for (int i = 0; i < 4 * kWidth; ++i) bytes[i] = table[bytes[i]];
  return codes(bytes);
#endif
}
