// Matrix pieces of attention: one register tile for all its products, and the packing that feeds it.
//
// Operands lie in scratch as 32-bit words with rows padded to whole vectors. A word is what P says (gemm_tile.inl.h): one
// float, or a pair of bf16 that one step multiplies and adds. `along` a row pairs neighbours in the row, `across` pairs
// rows 2j and 2j + 1.

constexpr int kChunk = (int)kKeyChunk;  // also the row stride of score tiles and transposed chunks
constexpr int kTallRows = kWidth == 16 ? 12 : kWidth == 8 ? 6 : 4;  // with two vectors: 24, 12 or 8 sums
constexpr int kLowRows = kWidth == 16 ? 4 : 2;                      // up to so many rows a tile is four vectors wide

static inline int64_t padded(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }
static inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// What attention needs of a word beside loading it. AttentionPairs (attention_pairs.inl.h) is the other kind.
template <class T> struct AttentionWords : FloatWords<T> {
  // Two vectors of numbers, neighbours in a row, to their words.
  static inline void store_along(float* words, int64_t at, Vec a, Vec b) {
    store(words + at, a);
    store(words + at + kWidth, b);
  }
  static inline Vec across_rows(Vec even, Vec) { return even; }
  static inline Vec only(Vec words, bool) { return words; }
};

// C = factor[row] * C + A B on R rows and C vectors over `steps` words; a null factor starts from zero. Each element is one
// chain in the order of the words, whatever the tile.
struct ProductTile {
  const float *a, *b;
  int64_t a_step, b_step;
  float* c;
  int64_t c_step;
  const float* factor;
  int64_t steps;
};

// kAcross: A's rows lie side by side, a[k * a_step + r]; else a[r * a_step + k]. The pragmas are for gcc: it keeps the
// sums in registers only if it unrolls early.
template <class Step, bool kAcross, int R, int C> static void product_tile(const ProductTile& t) {
  const float *a = t.a, *b = t.b;
  const int64_t a_step = t.a_step, b_step = t.b_step;
  Vec sum[R][C];
  if (t.factor) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec by = set1(t.factor[r]);
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) sum[r][i] = mul(load(t.c + r * t.c_step + i * kWidth), by);
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) sum[r][i] = zero();
    }
  }
  for (int64_t k = t.steps; k > 0; --k) {
    Vec row[C];
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) row[i] = load(b + i * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = set1(kAcross ? a[r] : a[r * a_step]);
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) sum[r][i] = Step::step(x, row[i], sum[r][i]);
    }
    a += kAcross ? a_step : 1;
    b += b_step;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) store(t.c + r * t.c_step + i * kWidth, sum[r][i]);
  }
}

using ProductTileFn = void (*)(const ProductTile&);

template <class Step, bool kAcross> static inline ProductTileFn product_tile_of(int rows, int vecs) {
#define MG_R(r) (r < kTallRows ? r : kTallRows)
#define MG_C(r, c) (c > 2 && MG_R(r) > kLowRows ? 2 : c)
#define MG_TILES(r)                                                                                          \
  {&product_tile<Step, kAcross, MG_R(r), 1>, &product_tile<Step, kAcross, MG_R(r), 2>,                       \
   &product_tile<Step, kAcross, MG_R(r), MG_C(r, 3)>, &product_tile<Step, kAcross, MG_R(r), MG_C(r, 4)>}
  static constexpr ProductTileFn table[12][4] = {MG_TILES(1), MG_TILES(2), MG_TILES(3), MG_TILES(4),
                                                 MG_TILES(5), MG_TILES(6), MG_TILES(7), MG_TILES(8),
                                                 MG_TILES(9), MG_TILES(10), MG_TILES(11), MG_TILES(12)};
#undef MG_TILES
#undef MG_C
#undef MG_R
  return table[rows - 1][vecs - 1];
}

struct Factors {
  float of[kChunk];
};
constexpr Factors unchanged() {
  Factors f = {};
  for (int i = 0; i < kChunk; ++i) f.of[i] = 1.0f;
  return f;
}
static constexpr Factors kUnchangedFactors = unchanged();
static constexpr const float* kUnchanged = kUnchangedFactors.of;

// A product whose rows each take a span of the summed index of their own, [begin, end) in elements. What rows share goes
// through a tile; the ends are shared out by halving. A product with zero would do as well, but not if B holds NaN there,
// and a row must not feel what it does not see.
template <class P, bool kAcross> struct Product {
  const float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step, cols;  // cols in words, whole vectors
  float* c;
  int64_t c_step;
  const int *begin, *end;

  static inline int64_t first_word(int64_t element) { return (element + P::kPer - 1) / P::kPer; }

  // Words [from, to) of rows [low, high).
  inline void tile(int64_t low, int64_t high, int64_t from, int64_t to, const float* factor) const {
    const int rows = (int)(high - low);
    const int64_t block = (rows <= kLowRows ? 4 : 2) * kWidth;
    ProductTile t;
    t.a = kAcross ? a + from * a_step + low : a + low * a_step + from;
    t.a_step = a_step;
    t.b_step = b_step;
    t.c_step = c_step;
    t.factor = factor;
    t.steps = to - from;
    for (int64_t j = 0; j < cols; j += block) {
      t.b = b + from * b_step + j;
      t.c = c + low * c_step + j;
      product_tile_of<typename P::Step, kAcross>(rows, (int)(at_most(cols - j, block) / kWidth))(t);
    }
  }
  // One of the two elements of a word, for one row.
  inline void half(int64_t row, int64_t word, bool second) const {
    const Vec x = set1(kAcross ? a[word * a_step + row] : a[row * a_step + word]);
    for (int64_t j = 0; j < cols; j += kWidth) {
      float* sum = c + row * c_step + j;
      store(sum, P::Step::step(x, P::only(load(b + word * b_step + j), second), load(sum)));
    }
  }
  inline int64_t latest_begin(int64_t low, int64_t high) const {
    int64_t word = 0;
    for (int64_t r = low; r < high; ++r) word = at_least(word, first_word(begin[r]));
    return word;
  }
  inline int64_t earliest_end(int64_t low, int64_t high) const {
    int64_t word = end[low] / P::kPer;
    for (int64_t r = low + 1; r < high; ++r) word = at_most(word, end[r] / P::kPer);
    return word;
  }
  // What rows [low, high) see before word `until`, which all of them reach.
  void heads(int64_t low, int64_t high, int64_t until) const {
    if (high - low == 1) {
      if (begin[low] % P::kPer) half(low, begin[low] / P::kPer, true);
      return;
    }
    const int64_t middle = low + (high - low) / 2, ends[3] = {low, middle, high};
    for (int i = 0; i < 2; ++i) {
      const int64_t from = latest_begin(ends[i], ends[i + 1]);
      heads(ends[i], ends[i + 1], from);
      if (from < until) tile(ends[i], ends[i + 1], from, until, kUnchanged);
    }
  }
  // What they see from word `from` on, up to which all of them see everything.
  void tails(int64_t low, int64_t high, int64_t from) const {
    if (high - low == 1) {
      if (end[low] % P::kPer) half(low, end[low] / P::kPer, false);
      return;
    }
    const int64_t middle = low + (high - low) / 2, ends[3] = {low, middle, high};
    for (int i = 0; i < 2; ++i) {
      const int64_t to = earliest_end(ends[i], ends[i + 1]);
      if (to > from) tile(ends[i], ends[i + 1], from, to, kUnchanged);
      tails(ends[i], ends[i + 1], to);
    }
  }
  // Rows with sums of their own already in C.
  void ragged(int64_t low, int64_t high) const {
    const int64_t from = latest_begin(low, high), to = earliest_end(low, high);
    if (high - low == 1) {
      if (begin[low] >= end[low]) return;
      heads(low, high, from);
      if (from < to) tile(low, high, from, to, kUnchanged);
      tails(low, high, to);
    } else if (from >= to) {
      const int64_t middle = low + (high - low) / 2;
      ragged(low, middle);
      ragged(middle, high);
    } else {
      heads(low, high, from);
      tile(low, high, from, to, kUnchanged);
      tails(low, high, to);
    }
  }
  // C = factor * C + A B; a null factor starts from zero.
  void run(int64_t rows, const float* factor) const {
    const int64_t tiles = (rows + kTallRows - 1) / kTallRows;
    int64_t low = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t high = low + rows / tiles + (i < rows % tiles);
      const float* by = factor ? factor + low : nullptr;
      bool same = begin[low] < end[low];
      for (int64_t r = low; r < high; ++r) same &= begin[r] == begin[low] && end[r] == end[low];
      if (same && begin[low] % P::kPer == 0 && end[low] % P::kPer == 0) {
        tile(low, high, begin[low] / P::kPer, end[low] / P::kPer, by);
      } else {
        for (int64_t r = low; r < high; ++r)
          for (int64_t j = 0; j < cols; j += kWidth) {
            float* sum = c + r * c_step + j;
            store(sum, by ? mul(load(sum), set1(by[r - low])) : zero());
          }
        ragged(low, high);
      }
      low = high;
    }
  }
};

// Rows [0, rows) of `width` elements -> rows of words along, `dst_step` apart, zeros up to a whole vector.
template <class P>
static inline void pack_along(const typename P::Element* src, int64_t stride, int64_t rows, int64_t width, float* dst,
                              int64_t dst_step) {
  constexpr int64_t kPart = kWidth * P::kPer;
  for (int64_t r = 0; r < rows; ++r, src += stride, dst += dst_step) {
    int64_t i = 0;
    for (; i + kPart <= width; i += kPart) store(dst + i / P::kPer, P::along(src + i));
    if (i < width) store(dst + i / P::kPer, P::along_n(src + i, width - i));
  }
}

// The same rows -> ceil(rows / kPer) rows of words across.
template <class P>
static inline void pack_across(const typename P::Element* src, int64_t stride, int64_t rows, int64_t width, float* dst,
                               int64_t dst_step) {
  for (int64_t r = 0; r < rows; r += P::kPer, src += P::kPer * stride, dst += dst_step)
    for (int64_t i = 0; i < width; i += kWidth)
      store(dst + i, P::across(src + i, stride, r + 1 < rows, at_most(width - i, kWidth)));
}

// (keys, width) -> words along, transposed: (words of width, kChunk), keys beyond the last as zeros up to a whole vector.
template <class P>
static inline void pack_turned(const typename P::Element* src, int64_t stride, int64_t keys, int64_t width, float* dst) {
  constexpr int64_t kPart = kWidth * P::kPer;
  const int64_t words = (width + P::kPer - 1) / P::kPer;
  for (int64_t k = 0; k < keys; k += kWidth) {
    const int64_t count = at_most(keys - k, kWidth);
    for (int64_t i = 0; i < width; i += kPart) {
      const typename P::Element* from = src + k * stride + i;
      Vec block[kWidth];
      if (count == kWidth && i + kPart <= width) {
#pragma GCC unroll 16
        for (int c = 0; c < kWidth; ++c) block[c] = P::along(from + c * stride);
      } else {
        for (int c = 0; c < kWidth; ++c)
          block[c] = c < count ? P::along_n(from + c * stride, at_most(width - i, kPart)) : zero();
      }
      gemm_transpose(block);
      float* out = dst + i / P::kPer * kChunk + k;
      const int64_t rows = at_most(words - i / P::kPer, kWidth);
      if (rows == kWidth) {
#pragma GCC unroll 16
        for (int c = 0; c < kWidth; ++c) store(out + c * kChunk, block[c]);
      } else {
        for (int64_t c = 0; c < rows; ++c) store(out + c * kChunk, block[c]);
      }
    }
  }
}

// dst (+)= factor[r * factor_step] * src, from padded rows to rows of the caller.
template <class T>
static inline void write_rows(const float* src, int64_t src_step, int64_t rows, int64_t width, const float* factor,
                              int64_t factor_step, T* dst, int64_t stride, bool accumulate) {
  for (int64_t r = 0; r < rows; ++r, src += src_step, dst += stride) {
    const Vec by = set1(factor[r * factor_step]);
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
