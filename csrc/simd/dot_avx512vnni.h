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
