// Four products of unsigned weight codes and signed activation codes a lane, added up exactly, where no instruction does it
// all: pairs of 16 bits by VPMADDWD (its 8-bit sister saturates), else lane arithmetic that any compiler lowers.
typedef int32_t IntLanes __attribute__((vector_size(4 * kWidth)));
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
// The top bit of a byte in a lane: signed numbers plus 128.
static inline Ints flipped(Ints a) { return {a.v ^ 128}; }
static inline Ints shifted(Ints a, int shift) { return {a.v >> shift}; }  // down; what comes in at the top is masked off
static inline Ints raised(Ints a, int shift) { return {a.v << shift}; }
static inline Ints both(Ints a, Ints b) { return {a.v | b.v}; }
static inline void store(uint8_t* p, Ints a) { memcpy(p, &a.v, sizeof a.v); }
static inline Vec as_floats(Ints a) {  // the same bits
  Vec y;
  memcpy(&y, &a.v, sizeof y);
  return y;
}
static inline Vec to_floats(Ints a) {
  typedef float FloatLanes __attribute__((vector_size(4 * kWidth)));
  const FloatLanes wide = __builtin_convertvector(a.v, FloatLanes);
  Vec y;
  memcpy(&y, &wide, sizeof y);
  return y;
}
#if defined(__AVX512BW__)
#define MG_MADD(a, b) (IntLanes)_mm512_madd_epi16((__m512i)(a), (__m512i)(b))
static inline Vec load_halves(const uint8_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline Ints load_shorts(const uint8_t* p) { return {(IntLanes)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
static inline Ints load_bytes(const uint8_t* p) { return {(IntLanes)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
#elif defined(__AVX2__)
#define MG_MADD(a, b) (IntLanes)_mm256_madd_epi16((__m256i)(a), (__m256i)(b))
static inline Vec load_halves(const uint8_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
static inline Ints load_shorts(const uint8_t* p) { return {(IntLanes)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline Ints load_bytes(const uint8_t* p) { return {(IntLanes)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))}; }
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
#ifdef MG_MADD
struct Quads {  // codes 0 and 2, and 1 and 3, as pairs of 16 bits
  IntLanes even, odd;
};
static inline Quads quads(const int8_t* p) {
  typedef int16_t Shorts __attribute__((vector_size(4 * kWidth)));
  int32_t word;
  memcpy(&word, p, 4);
  const Shorts both = (Shorts)(IntLanes{} + word);
  return {(IntLanes)((both << 8) >> 8), (IntLanes)(both >> 8)};
}
static inline Ints dot(Ints sum, Ints a, Quads b) {
  typedef uint16_t Halves __attribute__((vector_size(4 * kWidth)));
  return {sum.v + MG_MADD(a.v & 0x00ff00ff, b.even) + MG_MADD((Halves)a.v >> 8, b.odd)};
}
#undef MG_MADD
#else
struct Quads {
  int32_t code[4];
};
static inline Quads quads(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
static inline Ints dot(Ints sum, Ints a, Quads b) {
  return {sum.v + (a.v & 255) * b.code[0] + ((a.v >> 8) & 255) * b.code[1] + ((a.v >> 16) & 255) * b.code[2] +
          ((a.v >> 24) & 255) * b.code[3]};
}
#endif
// table[byte] of bytes below 16.
static inline Ints look_up(const uint8_t* table, Ints a) {
#if defined(__AVX512BW__)
  return {(IntLanes)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), (__m512i)a.v)};
#elif defined(__AVX2__)
  return {(IntLanes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table)), (__m256i)a.v)};
#else
  uint8_t bytes[4 * kWidth];
  store(bytes, a);
  for (int i = 0; i < 4 * kWidth; ++i) bytes[i] = table[bytes[i]];
  return codes(bytes);
#endif
}
