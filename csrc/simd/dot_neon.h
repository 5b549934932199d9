// Exact sums of products of unsigned weight codes and signed activation codes on AArch64. SDOT takes signed bytes alone, so
// codes of 8 bits are multiplied less 128; USMMLA multiplies two columns of 8 k by two rows. A row by itself takes USDOT.
constexpr bool kLaneLoops = false, kNarrowSums = false;
constexpr int kByteQuads = 2;  // quads of k that products take at a time at least
constexpr int dot_registers(int rows, int vectors, int) { return rows * vectors + vectors + (rows + 3) / 4; }

// N words, N up to 4, above them zeros.
template <int N> static inline int8x16_t words(const int8_t* p) {
  if constexpr (N == 4) return vld1q_s8(p);
  const int8x8_t none = vdup_n_s8(0);
  int32_t last;
  memcpy(&last, p + 4 * (N - 1), 4);
  const int8x8_t tail = vreinterpret_s8_s32(vset_lane_s32(last, vdup_n_s32(0), 0));
  if constexpr (N == 1) return vcombine_s8(tail, none);
  return vcombine_s8(vld1_s8(p), N == 2 ? none : tail);
}
// Words of R rows, four to a register.
template <int R> struct RowWords {
  int8x16_t v[(R + 3) / 4];
  inline __attribute__((always_inline)) explicit RowWords(const int8_t* a) {
    constexpr int kWhole = R / 4;
#pragma GCC unroll 3
    for (int i = 0; i < kWhole; ++i) v[i] = words<4>(a + 16 * i);
    if constexpr (R % 4 != 0) v[kWhole] = words<R % 4>(a + 16 * kWhole);
  }
};

#ifdef __ARM_FEATURE_MATMUL_INT8
#define MG_BY_WORD(sum, codes, x, lane) vusdotq_laneq_s32(sum, (uint8x16_t)codes, x, lane)
#else
#define MG_BY_WORD(sum, codes, x, lane) vdotq_laneq_s32(sum, (int8x16_t)codes, x, lane)
#endif
static inline __attribute__((always_inline)) int32x4_t by_word(int32x4_t sum, IntLanes codes, int8x16_t x, int lane) {
  switch (lane) {  // which must be a constant
    case 0: return MG_BY_WORD(sum, codes, x, 0);
    case 1: return MG_BY_WORD(sum, codes, x, 1);
    case 2: return MG_BY_WORD(sum, codes, x, 2);
    default: return MG_BY_WORD(sum, codes, x, 3);
  }
}
#undef MG_BY_WORD

// A register for each row and vector.
template <int R, int V, int Bits> struct RowSums {
#ifdef __ARM_FEATURE_MATMUL_INT8
  static constexpr bool kLess128 = false;
#else
  static constexpr bool kLess128 = Bits == 8;
#endif
  static constexpr int64_t kQuads = INT64_MAX;
  int32x4_t at[R][V];
  inline __attribute__((always_inline)) void start(int r, Ints x) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) at[r][v] = (int32x4_t)x.v;
  }
  template <int Stride, int N, class Take> inline __attribute__((always_inline)) void add(const Take& take, const int8_t* a) {
#pragma GCC unroll 8
    for (int q = 0; q < N; ++q) {
      const RowWords<R> x(a + 4 * Stride * q);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const IntLanes codes = kLess128 ? take(q, v).v ^ (int32_t)0x80808080u : take(q, v).v;
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) at[r][v] = by_word(at[r][v], codes, x.v[r / 4], r % 4);
      }
    }
  }
  inline void fold() {}
  inline Ints get(int r, int v) const { return {(IntLanes)at[r][v]}; }
};

#ifndef __ARM_FEATURE_MATMUL_INT8
template <int R, int V, int Bits> using QSums = RowSums<R, V, Bits>;
#else
// Registers of two columns by two rows: column c, rows r and r + 1; column c + 1, the same. Of an odd number of rows the last
// pair has a row of zeros.
template <int R, int V> struct PairSums {
  static constexpr bool kLess128 = false;
  static constexpr int64_t kQuads = INT64_MAX;
  static constexpr int kPairs = (R + 1) / 2;
  int32x4_t at[kPairs][V][2];
  inline __attribute__((always_inline)) void start(int r, Ints x) {  // rows in order
    const int32x4_t first = r % 2 ? at[r / 2][0][0] : (int32x4_t)x.v, both = vzip1q_s32(first, (int32x4_t)x.v);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) at[r / 2][v][0] = at[r / 2][v][1] = both;
  }
  template <int Stride, int N, class Take> inline __attribute__((always_inline)) void add(const Take& take, const int8_t* a) {
    static_assert(N % 2 == 0, "8 k at a time");
#pragma GCC unroll 8
    for (int q = 0; q < N; q += 2) {
      const RowWords<R> x(a + 4 * Stride * q), y(a + 4 * Stride * (q + 1));
      int8x16_t rows[kPairs];
#pragma GCC unroll 6
      for (int p = 0; p < kPairs; ++p) {
        const int32x4_t low = vreinterpretq_s32_s8(x.v[p / 2]), high = vreinterpretq_s32_s8(y.v[p / 2]);
        rows[p] = vreinterpretq_s8_s32(p % 2 ? vzip2q_s32(low, high) : vzip1q_s32(low, high));
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const int32x4_t low = (int32x4_t)take(q, v).v, high = (int32x4_t)take(q + 1, v).v;
        const uint8x16_t columns[2] = {vreinterpretq_u8_s32(vzip1q_s32(low, high)), vreinterpretq_u8_s32(vzip2q_s32(low, high))};
#pragma GCC unroll 6
        for (int p = 0; p < kPairs; ++p) {
          at[p][v][0] = vusmmlaq_s32(at[p][v][0], columns[0], rows[p]);
          at[p][v][1] = vusmmlaq_s32(at[p][v][1], columns[1], rows[p]);
        }
      }
    }
  }
  inline void fold() {}
  inline Ints get(int r, int v) const {
    const int32x4_t low = at[r / 2][v][0], high = at[r / 2][v][1];
    return {(IntLanes)(r % 2 ? vuzp2q_s32(low, high) : vuzp1q_s32(low, high))};
  }
};
template <int R, int V, int Bits> struct QSums : PairSums<R, V> {};
template <int V, int Bits> struct QSums<1, V, Bits> : RowSums<1, V, Bits> {};
#endif
