// Matrix pieces of attention: one register tile for all its products, and the packing that feeds it.
//
// Operands lie in scratch as 32-bit words with rows padded to whole vectors. A word is what P says (gemm_tile.inl.h): one
// float, or a pair of bf16 that one step multiplies and adds. `along` a row pairs neighbours in the row, `across` pairs
// rows 2j and 2j + 1.

constexpr int kChunk = (int)kKeyChunk;  // also the row stride of score tiles and transposed chunks
// with two vectors: 24, 12, 16 or 8 sums
constexpr int kTallRows = kWidth == 16 ? 12 : kWidth == 8 ? 6 : kRegisters == 32 ? 8 : 4;
constexpr int kSpanStep = 8;                        // spans of a product are multiples of it
// Where rows see more from one to the next: with so many in a tile their spans are mostly the same.
constexpr int kMaskedRows = kTallRows > kSpanStep ? kSpanStep : kTallRows;
constexpr int kLowRows = kRegisters == 32 ? 4 : 2;  // up to so many rows a tile is four vectors wide
constexpr int kTallPadded = (kTallRows + kWidth - 1) / kWidth * kWidth;
template <class P> constexpr bool kTiles = false;           // whether products of P are on AMX tiles (attention_amx.inl.h)
template <class W> constexpr bool kInPlace = false;         // whether decode's products read keys and values as they lie
template <class P> constexpr int kScoreRows = kTallRows;    // of a tile of scores

// Rows in parts of at most `most`, as even as can be: part i of them.
struct RowPart {
  int64_t low, high;
};
static inline int64_t parts_of(int64_t rows, int64_t most) { return (rows + most - 1) / most; }
static inline RowPart part_of(int64_t rows, int64_t parts, int64_t i) {
  const int64_t height = rows / parts, longer = rows % parts;
  return {i * height + at_most(i, longer), (i + 1) * height + at_most(i + 1, longer)};
}

// What attention needs of a word beside loading it. AttentionPairs (attention_pairs.inl.h) is the other kind.
template <class T> struct AttentionWords : FloatWords<T> {
  // Two vectors of numbers, neighbours in a row, to their words.
  static inline void store_along(float* words, int64_t at, Vec a, Vec b) {
    store(words + at, a);
    store(words + at + kWidth, b);
  }
  static inline Vec across_rows(Vec even, Vec) { return even; }
  // Rows [0, rows) of `width` elements -> rows of words across, zeros up to a multiple of kSpanStep elements. Returns whether
  // all are finite. As in pack_turned, what lies `ahead` elements further is asked for (into L2: rows with other heads in
  // between fight for few sets of L1); no hardware foresees it.
  static inline bool pack_across(const T* src, int64_t stride, int64_t rows, int64_t width, float* dst, int64_t dst_step,
                                 int64_t ahead) {
    Vec probe = zero();
    int64_t r = 0;
    for (; r < rows; ++r, src += stride, dst += dst_step) {
      Vec of_row = zero();
      for (int64_t i = 0; i < width; i += kWidth) {
        const Vec x = width - i < kWidth ? load_n(src + i, width - i) : load(src + i);
        __builtin_prefetch(src + i + ahead, 0, 2);
        of_row = fma(x, zero(), of_row);  // NaN if it is not finite
        store(dst + i, x);
      }
      probe = add(probe, of_row);
    }
    for (; r % kSpanStep; ++r, dst += dst_step) clear(dst, width);
    return hsum(probe) == 0.0f;
  }
  // Two vectors of words across, at columns j and j + kWidth: of `n` columns of a row, and the next if there is one.
  static inline void across_two(const T* row, int64_t, bool, int64_t n, Vec& low, Vec& high) {
    low = n < kWidth ? load_n(row, n) : load(row);
    high = n >= 2 * kWidth ? load(row + kWidth) : n > kWidth ? load_n(row + kWidth, n - kWidth) : zero();
  }
  // Numbers that are not seen become zeros of their sign, as if a finite number was multiplied by 0.
  static inline Vec seen(Vec words, bool yes, bool) {
    return yes ? words : select(lt(abs(words), set1(INFINITY)), mul(words, zero()), zero());
  }
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
  constexpr int kGroup = 4;  // rows that one pointer serves: few enough registers for addresses
  const float *a[3] = {t.a, t.a + (kAcross ? kGroup : kGroup * t.a_step), t.a + (kAcross ? 2 * kGroup : 2 * kGroup * t.a_step)};
  const float* b = t.b;
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
      const Vec x = set1(a[r / kGroup][kAcross ? r % kGroup : r % kGroup * a_step]);
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) sum[r][i] = Step::step(x, row[i], sum[r][i]);
    }
    for (int g = 0; g < 3; ++g) a[g] += kAcross ? a_step : 1;
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

// A product whose rows each take a span of the summed index of their own, [begin, end) in elements; both ends only grow from
// row to row. A is zero where a row does not see, so spans are widened to multiples of kSpanStep (which keeps a row's sums its
// own affair) and go through tiles in few pieces. Where B holds NaN or an infinity, which zero does not cancel, each row goes
// alone over what it sees.

template <class P, bool kAcross> struct Product {
  const float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step, cols;  // cols in words, whole vectors
  float* c;
  int64_t c_step;

  // C = factor * C + A B for words [from, to) of rows [low, high); a null factor starts from zero.
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
  // One row, B's unseen numbers hidden: the same bits as in a tile if they are finite.
  void row(int64_t r, int begin, int end, float factor) const {
    const int from = begin / kSpanStep * kSpanStep, to = (end + kSpanStep - 1) / kSpanStep * kSpanStep;
    for (int64_t j = 0; j < cols; j += kWidth) {
      Vec sum = mul(load(c + r * c_step + j), set1(factor));
      for (int i = from; i < to; i += P::kPer) {
        const int word = i / P::kPer, second = i + P::kPer - 1;
        const Vec x = set1(kAcross ? a[word * a_step + r] : a[r * a_step + word]);
        const Vec y = P::seen(load(b + word * b_step + j), i >= begin && i < end, second >= begin && second < end);
        sum = P::Step::step(x, y, sum);
      }
      store(c + r * c_step + j, sum);
    }
  }
  // C = factor * C + A B for all rows, at most kChunk, in tiles of at most `most`.
  void run(int64_t rows, int64_t most, const int* begin, const int* end, bool finite, const float* factor) const {
    const int64_t tiles = parts_of(rows, most);
    for (int64_t i = 0; i < tiles; ++i) {
      const auto [low, high] = part_of(rows, tiles, i);
      const int first_step = begin[low] / kSpanStep * kSpanStep, last_step = (end[low] + kSpanStep - 1) / kSpanStep * kSpanStep;
      if (finite && begin[high - 1] < end[low] && begin[high - 1] < first_step + kSpanStep && end[high - 1] <= last_step) {
        tile(low, high, first_step / P::kPer, last_step / P::kPer, factor + low);  // all the same
        continue;
      }
      int from[kTallRows], to[kTallRows], at = kChunk, stop = 0;
      float by[kTallRows];
      for (int64_t r = low; r < high; ++r) {
        const bool any = begin[r] < end[r];
        from[r - low] = begin[r] / kSpanStep * kSpanStep;
        to[r - low] = any ? (end[r] + kSpanStep - 1) / kSpanStep * kSpanStep : from[r - low];
        by[r - low] = factor[r];
        if (any && !finite) row(r, begin[r], end[r], factor[r]);
        at = any && from[r - low] < at ? from[r - low] : at;
        stop = any && to[r - low] > stop ? to[r - low] : stop;
      }
      while (finite && at < stop) {  // up to where the next row begins or ends
        int next = stop;
        int64_t first = high, last = low;
        for (int64_t r = low; r < high; ++r) {
          const int f = from[r - low], t = to[r - low];
          if (f > at) {
            next = f < next ? f : next;
          } else if (t > at) {
            next = t < next ? t : next;
            first = r < first ? r : first;
            last = r + 1;
          }
        }
        if (first < last) tile(first, last, at / P::kPer, next / P::kPer, by + (first - low));
        for (int64_t r = first; r < last; ++r) by[r - low] = 1.0f;
        at = next;
      }
    }
  }
};

// The vectors of a chunk that some row sees: [first, last), the end as it is.
struct VectorSpan {
  int64_t first, last;
};
static inline VectorSpan vectors_seen(int64_t rows, const int* begin, const int* end) {
  VectorSpan seen = {kChunk, 0};
  for (int64_t r = 0; r < rows; ++r) {
    if (begin[r] >= end[r]) continue;
    seen.first = at_most(seen.first, begin[r] / kWidth * kWidth);
    seen.last = at_least(seen.last, end[r]);
  }
  return seen;
}

// Products of a register tile's rows, words along, with a turned chunk, (rows, kChunk): the vectors that some row sees.
template <class P>
static inline void chunk_products(const float* x, int64_t x_step, int64_t words, const float* turned, int64_t rows,
                                  const int* begin, const int* end, float* out) {
  const auto [first, last] = vectors_seen(rows, begin, end);
  if (first >= last) return;
  const Product<P, false> product = {x, x_step, turned + first, kChunk, padded(last - first), out + first, kChunk};
  product.tile(0, rows, 0, words, nullptr);
}

// Zeros where tiles take whole steps: words of a turned chunk behind those of `width`, and pairs of rows across that pack_across
// left out, up to a chunk of them.
template <class P> static inline void clear_words(float* turned, int64_t width) {
  const int64_t words = (width + P::kPer - 1) / P::kPer;
  clear(turned + words * kChunk, (padded(words) - words) * kChunk);
}
static inline void clear_unpacked(float* pairs, int64_t rows, int64_t step) {
  const int64_t packed = (rows + kSpanStep - 1) / kSpanStep * kSpanStep;
  clear(pairs + packed / 2 * step, (kChunk - packed) / 2 * step);
}

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

// (keys, width) -> words along, transposed: (words of width, kChunk), keys beyond the last as zeros up to a whole vector.
template <class P>
static inline void pack_turned(const typename P::Element* src, int64_t stride, int64_t keys, int64_t width, float* dst,
                               int64_t ahead = 0) {
  constexpr int64_t kPart = kWidth * P::kPer;
  const int64_t words = (width + P::kPer - 1) / P::kPer;
  for (int64_t k = 0; k < keys; k += kWidth) {
    const int64_t count = at_most(keys - k, kWidth);
    for (int64_t i = 0; i < width; i += kPart) {
      const typename P::Element* from = src + k * stride + i;
      float* out = dst + i / P::kPer * kChunk + k;
      const bool whole = count == kWidth && i + kPart <= width;
      if (whole)
        for (int c = 0; c < kWidth; ++c) __builtin_prefetch(from + c * stride + ahead, 0, 2);
      if (P::kInMemory && whole) {
#pragma GCC unroll 2
        for (int c = 0; c < kWidth; c += kWidth / 2) {
          Vec half[kWidth / 2];
          gemm_turn_half((const char*)from + 4 * c, stride * (int64_t)sizeof(*from), half);
#pragma GCC unroll 8
          for (int w = 0; w < kWidth / 2; ++w) store(out + (c + w) * kChunk, half[w]);
        }
        continue;
      }
      Vec block[kWidth];
      for (int c = 0; c < kWidth; ++c)
        block[c] = whole ? P::along(from + c * stride) : c < count ? P::along_n(from + c * stride, at_most(width - i, kPart)) : zero();
      gemm_transpose(block);
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

// dst (+)= factor[r * factor_step] * src, from padded rows to rows of the caller. A sum of pairs that is too small becomes a zero of
// a sign that depends on how many steps follow: it is +0 here.
template <class T>
static inline void write_rows(const float* src, int64_t src_step, int64_t rows, int64_t width, const float* factor,
                              int64_t factor_step, T* dst, int64_t stride, bool accumulate) {
  for (int64_t r = 0; r < rows; ++r, src += src_step, dst += stride) {
    const Vec by = set1(factor[r * factor_step]);
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) {
      const Vec x = mul(load(src + i), by);
      store(dst + i, accumulate ? add(load(dst + i), x) : kNarrow<T> ? add(x, zero()) : x);
    }
    if (i < width) {
      const Vec x = mul(load(src + i), by);
      store_n(dst + i, accumulate ? add(load_n(dst + i, width - i), x) : kNarrow<T> ? add(x, zero()) : x, width - i);
    }
  }
}
