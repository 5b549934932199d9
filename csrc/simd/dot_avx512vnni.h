// Four products of unsigned weight codes and signed activation codes a lane, added up exactly: VPDPBUSD.
struct Ints {
  __m512i v;
};
struct Quads {  // four activation codes, as dot() takes them
  __m512i v;
};
static inline Ints ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline Quads quads(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return {_mm512_set1_epi32(word)};
}
static inline Ints codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline Ints low_codes(Ints a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline Ints high_codes(Ints a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
// gcc 12 moves and spills sums around the intrinsic.
static inline Ints dot(Ints sum, Ints a, Quads b) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
}
static inline Vec to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline Vec load_halves(const uint8_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
// As in dot.h.
static inline Ints field(Ints a, int shift, int32_t mask) {
  const __m512i moved = shift < 0 ? _mm512_slli_epi32(a.v, (unsigned)-shift) : _mm512_srli_epi32(a.v, (unsigned)shift);
  return {_mm512_and_si512(moved, _mm512_set1_epi32(mask))};
}
// The top bit of a byte in a lane: signed numbers plus 128.
static inline Ints flipped(Ints a) { return {_mm512_xor_si512(a.v, _mm512_set1_epi32(128))}; }
static inline Ints shifted(Ints a, int shift) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(shift))}; }
static inline Ints raised(Ints a, int shift) { return {_mm512_sllv_epi32(a.v, _mm512_set1_epi32(shift))}; }
static inline Ints both(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline void store(uint8_t* p, Ints a) { _mm512_storeu_si512(p, a.v); }
static inline Vec as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
static inline Ints load_shorts(const uint8_t* p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
static inline Ints load_bytes(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline Ints look_up(const uint8_t* table, Ints a) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), a.v)};
}
