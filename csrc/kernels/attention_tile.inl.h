// Matrix pieces of attention: one register tile for all its products, the transpose and the copies that feed it.
// All matrices but the operands of the tails live in scratch with rows padded to whole vectors.

constexpr int kTileRows = 4;                       // with kTileVecs: 16 (8) sums, enough to hide the latency of fma
constexpr int kTileVecs = kRegisters == 32 ? 4 : 2;  // 32 registers on AVX-512 and NEON, 16 elsewhere
constexpr int kChunk = (int)kKeyChunk;             // also the row stride of score tiles and transposed chunks
constexpr int kTile = (int)kQueryTile;

static inline int64_t padded(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }
static inline int at_least(int a, int b) { return a > b ? a : b; }
static inline int at_most(int a, int b) { return a < b ? a : b; }

// [begin, end) of the summed index that each row of a product takes.
struct Spans {
  int begin[kChunk], end[kChunk];
};

// C (+)= A B on R rows and C vectors, k in [first, last). A(r, k) = a[r * a_row + k * a_step]; each element is one chain
// over k in order, whatever the tile. B has `tail` columns in its last vector, which only single rows may leave unfilled.
// The pragmas are for gcc: it keeps the sums in registers only if it unrolls early.
template <int R, int C>
static void product_tile(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int tail, float* c,
                         int64_t ldc, bool accumulate, int first, int last) {
  Vec sum[R][C];
  if (accumulate) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) sum[r][i] = load(c + r * ldc + i * kWidth);
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) sum[r][i] = zero();
    }
  }
  a += first * a_step;
  b += first * ldb;
  for (int k = first; k < last; ++k) {
    Vec row[C];
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i)
      row[i] = R == 1 && i == C - 1 && tail < kWidth ? load_n(b + i * kWidth, tail) : load(b + i * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec x = set1(a[r * a_row]);
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) sum[r][i] = fma(x, row[i], sum[r][i]);
    }
    a += a_step;
    b += ldb;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) store(c + r * ldc + i * kWidth, sum[r][i]);
  }
}

// Each row takes the k of its own span only: what all rows share goes through the tile, the ends row by row. A product
// with zero would do as well, but not if B holds NaN there, and a row must not feel keys that it does not see.
template <int R, int C>
static inline void product_spans(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int tail,
                                 float* c, int64_t ldc, bool accumulate, const int* begin, const int* end) {
  int first = begin[0], last = end[0];
  bool ragged = false;
  for (int r = 1; r < R; ++r) {
    ragged |= begin[r] != begin[0];
    first = at_least(first, begin[r]);
    last = at_most(last, end[r]);
  }
  if (R > 1 && first >= last) {  // nothing is shared
    for (int r = 0; r < R; ++r)
      product_tile<1, C>(a + r * a_row, 0, a_step, b, ldb, tail, c + r * ldc, 0, accumulate, begin[r], end[r]);
    return;
  }
  for (int r = 0; r < R && ragged; ++r)
    product_tile<1, C>(a + r * a_row, 0, a_step, b, ldb, tail, c + r * ldc, 0, accumulate, begin[r], first);
  product_tile<R, C>(a, a_row, a_step, b, ldb, tail, c, ldc, accumulate || ragged, first, last);
  for (int r = 0; r < R; ++r)
    if (end[r] > last) product_tile<1, C>(a + r * a_row, 0, a_step, b, ldb, tail, c + r * ldc, 0, true, last, end[r]);
}

template <int R>
static inline void product_rows(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int64_t cols,
                                float* c, int64_t ldc, bool accumulate, const int* begin, const int* end) {
  constexpr int kBlock = kTileVecs * kWidth;
  int64_t j = 0;
  for (; j + kBlock <= cols; j += kBlock)
    product_spans<R, kTileVecs>(a, a_row, a_step, b + j, ldb, kWidth, c + j, ldc, accumulate, begin, end);
  if (j == cols) return;
  const int vecs = (int)((cols - j + kWidth - 1) / kWidth), tail = (int)(cols - j) - (vecs - 1) * kWidth;
  if (vecs == 1) product_spans<R, 1>(a, a_row, a_step, b + j, ldb, tail, c + j, ldc, accumulate, begin, end);
  if (vecs == 2) product_spans<R, 2>(a, a_row, a_step, b + j, ldb, tail, c + j, ldc, accumulate, begin, end);
  if constexpr (kTileVecs == 4) {
    if (vecs == 3) product_spans<R, 3>(a, a_row, a_step, b + j, ldb, tail, c + j, ldc, accumulate, begin, end);
    if (vecs == 4) product_spans<R, 4>(a, a_row, a_step, b + j, ldb, tail, c + j, ldc, accumulate, begin, end);
  }
}

static inline void product(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int64_t cols,
                           float* c, int64_t ldc, bool accumulate, int rows, const int* begin, const int* end) {
  for (; rows >= kTileRows; rows -= kTileRows) {
    product_rows<kTileRows>(a, a_row, a_step, b, ldb, cols, c, ldc, accumulate, begin, end);
    a += kTileRows * a_row;
    c += kTileRows * ldc;
    begin += kTileRows;
    end += kTileRows;
  }
  if (rows == 1) product_rows<1>(a, a_row, a_step, b, ldb, cols, c, ldc, accumulate, begin, end);
  if (rows == 2) product_rows<2>(a, a_row, a_step, b, ldb, cols, c, ldc, accumulate, begin, end);
  if (rows == 3) product_rows<3>(a, a_row, a_step, b, ldb, cols, c, ldc, accumulate, begin, end);
}

// Scores of `rows` rows with the keys of a transposed chunk, only the vectors that some row of a register tile sees.
static inline void scores(const float* x, int64_t x_row, int64_t depth, const float* transposed, float* out, int rows,
                          const Spans& keys) {
  int none[kTileRows] = {}, all[kTileRows];
  for (int r = 0; r < kTileRows; ++r) all[r] = (int)depth;
  for (int r = 0; r < rows; r += kTileRows) {
    const int count = at_most(kTileRows, rows - r);
    int first = kChunk, last = 0;
    for (int i = r; i < r + count; ++i) {
      if (keys.begin[i] >= keys.end[i]) continue;
      first = at_most(first, keys.begin[i] / kWidth * kWidth);
      last = at_least(last, keys.end[i]);
    }
    if (first >= last) continue;
    const int64_t cols = padded(last - first);
    product(x + r * x_row, x_row, 1, transposed + first, kChunk, cols, out + r * kChunk + first, kChunk, false, count, none, all);
  }
}

#if defined(__AVX2__)
static inline __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
static inline __m256 eight(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline __m256 first_of_eight(const float* p, int n) {
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
}
static inline __m256 first_of_eight(const bf16* p, int n) {
  bf16 lanes[8] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return eight(lanes);
}
// A block of 8 x 8. kWhole: all of it is there; else `rows` rows of `cols`, missing rows read as zero.
template <bool kWhole, class T>
static inline void transpose_block(const T* src, int64_t stride, int rows, int cols, float* dst) {
  __m256 row[8], pair[8];
  for (int r = 0; r < 8; ++r) {
    if (kWhole) row[r] = eight(src + r * stride);
    else row[r] = r < rows ? first_of_eight(src + r * stride, cols) : _mm256_setzero_ps();
  }
  for (int r = 0; r < 8; r += 2) {
    pair[r] = _mm256_unpacklo_ps(row[r], row[r + 1]);
    pair[r + 1] = _mm256_unpackhi_ps(row[r], row[r + 1]);
  }
  for (int r = 0; r < 8; r += 4)
    for (int i = 0; i < 2; ++i) {
      row[r + 2 * i] = _mm256_shuffle_ps(pair[r + i], pair[r + i + 2], 0x44);
      row[r + 2 * i + 1] = _mm256_shuffle_ps(pair[r + i], pair[r + i + 2], 0xEE);
    }
  for (int i = 0; i < 4; ++i) {
    if (kWhole || i < cols) _mm256_storeu_ps(dst + i * kChunk, _mm256_permute2f128_ps(row[i], row[i + 4], 0x20));
    if (kWhole || i + 4 < cols) _mm256_storeu_ps(dst + (i + 4) * kChunk, _mm256_permute2f128_ps(row[i], row[i + 4], 0x31));
  }
}
#else
template <bool kWhole, class T>
static inline void transpose_block(const T* src, int64_t stride, int rows, int cols, float* dst) {
  for (int i = 0; i < cols && i < 8; ++i)
    for (int r = 0; r < 8; ++r) dst[i * kChunk + r] = r < rows ? value_of(src[r * stride + i]) : 0.0f;
}
#endif

// (keys, width) -> (width, kChunk), keys beyond the last as zeros up to a whole vector.
template <class T>
static inline void transpose_chunk(const T* src, int64_t stride, int keys, int64_t width, float* dst) {
  for (int k = 0; k < padded(keys); k += 8) {
    const int rows = at_most(8, at_least(0, keys - k));
    const T* from = src + (rows ? k * stride : 0);
    int64_t i = 0;
    for (; rows == 8 && i + 8 <= width; i += 8) transpose_block<true>(from + i, stride, 8, 8, dst + i * kChunk + k);
    for (; i < width; i += 8)
      transpose_block<false>(from + i, stride, rows, width - i < 8 ? (int)(width - i) : 8, dst + i * kChunk + k);
  }
}

// Rows copied to a stride of whole vectors: a power-of-two stride between tokens would fight for the same cache sets.
template <class T>
static inline void copy_rows(const T* src, int64_t stride, int rows, int64_t width, float* dst) {
  const int64_t ld = padded(width);
  for (int r = 0; r < rows; ++r, src += stride, dst += ld) {
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) store(dst + i, load(src + i));
    if (i < width) store(dst + i, load_n(src + i, width - i));
  }
}

// dst (+)= factor[r] * src, from padded rows to rows of the caller; factor null is 1.
template <class T>
static inline void write_rows(const float* src, int rows, int64_t width, const float* factor, T* dst, int64_t stride,
                              bool accumulate) {
  const int64_t ld = padded(width);
  for (int r = 0; r < rows; ++r, src += ld, dst += stride) {
    const Vec by = set1(factor ? factor[r] : 1.0f);
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) {
      const Vec x = mul(load(src + i), by);
      store(dst + i, accumulate ? add(load(dst + i), x) : x);
    }
    if (i < width) {
      const Vec x = mul(load(src + i), by);
      store_n(dst + i, accumulate ? add(load_n(dst + i, width - i), x) : x, width - i);
    }
  }
}

static inline void clear(float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) store(p + i, zero());
}
