// Attention's products on the tiles of AMX (gemm_amx.inl.h): words are the pairs of attention_pairs.inl.h, and lie in scratch as
// tiles want them: rows of A are words along, rows of B words across. A score adds 32 numbers of the head at a time, an output
// 32 keys of the chunk, a gradient 32 keys or query rows. An output's sums of a chunk start from zero and are then added to those
// before, so that a row's bits are its own whichever rows are beside it; gradients are summed in the tiles.
// What pads a step is zero, and tiles are 16 rows high: of those that are not there sums may be anything.
constexpr int kTileRows = 16, kTileWords = 16;
constexpr int kTileKeys = 2 * kTileWords;

struct AttentionTiles;
template <> constexpr bool kTiles<AttentionTiles> = true;
template <> constexpr bool kInPlace<AttentionTiles> = true;
template <> constexpr int kScoreRows<AttentionTiles> = kTileRows;

// c (16, 16 `tiles`), rows c_step apart, = or += `steps` of words along times words across (which a turned chunk is for queries).
static inline void tile_product(const float* words, int64_t step, int64_t steps, const float* values, int64_t v_step, int64_t tiles,
                                float* c, int64_t c_step, bool add_up) {
  const int64_t c_row = c_step * 4;
  asm volatile("" ::: "memory");  // the tile instructions do not say what they read and write
  if (add_up) {
    _tile_loadd(0, c, c_row);
    if (tiles > 1) _tile_loadd(1, c + kTileWords, c_row);
    if (tiles > 2) _tile_loadd(2, c + 2 * kTileWords, c_row);
    if (tiles > 3) _tile_loadd(3, c + 3 * kTileWords, c_row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (; steps > 0; --steps, words += kTileWords, values += kTileWords * v_step) {
    _tile_loadd(4, words, step * 4);
    _tile_loadd(5, values, v_step * 4);
    _tile_dpbf16ps(0, 4, 5);
    if (tiles > 1) {
      _tile_loadd(6, values + kTileWords, v_step * 4);
      _tile_dpbf16ps(1, 4, 6);
    }
    if (tiles > 2) {
      _tile_loadd(7, values + 2 * kTileWords, v_step * 4);
      _tile_dpbf16ps(2, 4, 7);
    }
    if (tiles > 3) {
      _tile_loadd(5, values + 3 * kTileWords, v_step * 4);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, c, c_row);
  if (tiles > 1) _tile_stored(1, c + kTileWords, c_row);
  if (tiles > 2) _tile_stored(2, c + 2 * kTileWords, c_row);
  if (tiles > 3) _tile_stored(3, c + 3 * kTileWords, c_row);
  asm volatile("" ::: "memory");
}

// What is done with words of either kind: decode's products of a block of tokens.
template <class Pairs> struct OnTiles : Pairs {
  using Element = typename Pairs::Element;

  // c = factor c + sums.
  static void add_sums(float* c, float factor, const float* sums, int64_t width) {
    const Vec by = set1(factor);
    for (int64_t j = 0; j < width; j += kWidth) store(c + j, fma(load(c + j), by, load(sums + j)));
  }

  // Raw products of `rows` with kWidth keys.
  template <class Block> static void scores(const Block& b, int64_t rows) {
    alignas(64) float turned[kTileWords * kTileWords], sums[kTileRows * kTileWords];
    _tile_zero(0);
    for (int64_t i = 0; i < b.width; i += kTileKeys) {
      const Element* from = b.tokens + i;
      Vec block[kWidth];
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c)
        block[c] = c >= b.count ? zero() : b.width - i >= kTileKeys ? Pairs::along(from + c * b.stride)
                                                                    : Pairs::along_n(from + c * b.stride, b.width - i);
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) __builtin_prefetch(b.ahead + i + c * b.ahead_stride, 0, 2);
      gemm_transpose(block);
#pragma GCC unroll 16
      for (int c = 0; c < kWidth; ++c) store(turned + c * kTileWords, block[c]);
      asm volatile("" ::: "memory");
      _tile_loadd(4, b.x + i / 2, b.x_step * 4);
      _tile_loadd(5, turned, kTileWords * 4);
      _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, sums, kTileWords * 4);
    asm volatile("" ::: "memory");
    for (int64_t r = 0; r < rows; ++r) store(b.out + r * b.out_step, load(sums + r * kTileWords));
  }

  // out = or += words of kTileKeys tokens, of which [begin, end) are seen, times their values; tiles of A and C are `tile_rows` high.
  template <class Block>
  static void values(const Block& b, int64_t rows, int64_t tile_rows, int begin, int end, bool add_up) {
    alignas(64) float across[kTileWords * 2 * kTileWords], sums[2 * kTileRows * kTileWords];
    for (int64_t j = 0; j < b.width; j += kTileKeys) {
      const int64_t n = b.width - j;
      for (int i = 0; i < kTileKeys; i += 2) {
        Vec low = zero(), high = zero();
        if (i < end && i + 2 > begin && i < b.count) {
          Pairs::across_two(b.tokens + i * b.stride + j, b.stride, i + 1 < b.count, n, low, high);
          low = Pairs::seen(low, i >= begin, i >= begin - 1 && i + 1 < end);
          high = Pairs::seen(high, i >= begin, i >= begin - 1 && i + 1 < end);
        }
        __builtin_prefetch(b.ahead + j + i * b.ahead_stride, 0, 2);
        __builtin_prefetch(b.ahead + j + (i + 1) * b.ahead_stride, 0, 2);
        store(across + i * kTileWords, low);
        store(across + (i + 1) * kTileWords, high);
      }
      float* const out = b.out + j;
      const bool two = n > kTileWords;
      // Where a tile has more rows, other heads' sums lie behind these.
      float* const c = rows == tile_rows ? out : sums;
      const int64_t c_step = c == out ? b.out_step : 2 * kTileWords;
      if (c != out && add_up)
        for (int64_t r = 0; r < rows; ++r) {
          store(c + r * c_step, load(out + r * b.out_step));
          if (two) store(c + r * c_step + kTileWords, load(out + r * b.out_step + kTileWords));
        }
      asm volatile("" ::: "memory");
      if (add_up) {
        _tile_loadd(0, c, c_step * 4);
        if (two) _tile_loadd(1, c + kTileWords, c_step * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
      }
      _tile_loadd(4, b.x, b.x_step * 4);
      _tile_loadd(5, across, 2 * kTileWords * 4);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, across + kTileWords, 2 * kTileWords * 4);
      _tile_dpbf16ps(1, 4, 6);
      _tile_stored(0, c, c_step * 4);
      if (two) _tile_stored(1, c + kTileWords, c_step * 4);
      asm volatile("" ::: "memory");
      if (c == out) continue;
      for (int64_t r = 0; r < rows; ++r) {
        store(out + r * b.out_step, load(c + r * c_step));
        if (two) store(out + r * b.out_step + kTileWords, load(c + r * c_step + kTileWords));
      }
    }
  }
};
// Decode where keys and values are bf16 and tiles read them as they lie. Keys are rows of A and queries columns of B, so that
// nothing is turned. Values are rows of B, even tokens in one product and odd ones in another; a row of A holds probabilities
// beside zeros, so that its sums are those of even columns, and the next row's those of odd ones. TDPBF16PS adds up the products of
// even and of odd k by themselves, and C gets their sum: here either is a product of its own, which has the same bits.
struct AttentionTiles : OnTiles<AttentionPairs> {
  // Of `each` queries a key head: tiles 0, 1, 4 and 7 have two rows a query, 2 and 3 a column, 5 and 6 are whole.
  static void begin(int64_t each) {
    static_assert(kInPlaceStep == kTileKeys && 2 * kInPlaceQueries <= kTileRows);
    amx_configure([&](int i) { return i < 2 || i == 4 || i == 7 ? 2 * each : kTileRows; },
                  [&](int i) { return i == 2 || i == 3 ? 4 * each : 64; });
  }

  // `each` rows of words -> [word][row].
  static void queries_across(const float* rows, int64_t step, int64_t each, float* to) {
    for (int64_t i = 0; i < step; ++i)
      for (int64_t r = 0; r < each; ++r) to[i * each + r] = rows[r * step + i];
  }

  static void ask_for_rows(const Element* p, int64_t stride, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) ask_for(p + r * stride, Full{});
  }

  // b.x: queries across.
  template <class Block> static void scores_in_place(const Block& b, int64_t each) {
    asm volatile("" ::: "memory");
    _tile_zero(2);
    for (int64_t i = 0; i < b.width; i += kTileKeys) {
      _tile_loadd(5, b.tokens + i, b.stride * 2);
      _tile_loadd(3, b.x + i / 2 * each, each * 4);
      _tile_dpbf16ps(2, 5, 3);
      ask_for_rows(b.ahead + i, b.ahead_stride, kWidth);
    }
    if (each == 1) {
      _tile_stored(2, b.out, 4);
      asm volatile("" ::: "memory");
      return;
    }
    alignas(64) float sums[kTileRows * kTileWords];
    _tile_stored(2, sums, kTileWords * 4);
    asm volatile("" ::: "memory");
    const __m512i keys = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
    for (int64_t r = 0; r < each; ++r) store(b.out + r * b.out_step, {_mm512_i32gather_ps(keys, sums + r, 4)});
  }

  // Denormal sums are zero in tiles.
  static Vec add_flushed(Vec a, Vec b) {
    const __m512 sum = _mm512_add_ps(a.v, b.v);
    return {_mm512_maskz_mov_ps((__mmask16)~(_mm512_fpclass_ps_mask(sum, 0x20)), sum)};
  }

  // The sums of a chunk of two steps: values() of the first (columns in two halves), or the second. False where one is not finite:
  // a zero beside a probability hides no infinity.
  template <class Block> static bool values_in_place(const Block& b, int64_t each, bool second) {
    alignas(64) float even[kTileRows * kTileWords], odd[kTileRows * kTileWords], sums[2][kTileRows * kTileWords];
    const __m512i low = _mm512_set1_epi32(0xffff);
    for (int64_t r = 0; r < each; ++r) {
      const __m512i pairs = _mm512_loadu_si512(b.x + r * b.x_step);
      const int64_t at = 2 * r * kTileWords;
      _mm512_store_si512(even + at, _mm512_and_si512(pairs, low));
      _mm512_store_si512(even + at + kTileWords, _mm512_slli_epi32(pairs, 16));
      _mm512_store_si512(odd + at, _mm512_srli_epi32(pairs, 16));
      _mm512_store_si512(odd + at + kTileWords, _mm512_andnot_si512(low, pairs));
    }
    asm volatile("" ::: "memory");
    _tile_loadd(4, even, kTileWords * 4);
    _tile_loadd(7, odd, kTileWords * 4);
    __mmask16 infinite = 0;
    for (int64_t j = 0; j < b.width; j += kTileKeys) {
      _tile_zero(0);
      _tile_loadd(5, b.tokens + j, b.stride * 4);
      _tile_dpbf16ps(0, 4, 5);
      _tile_zero(1);
      _tile_loadd(6, b.tokens + b.stride + j, b.stride * 4);
      _tile_dpbf16ps(1, 7, 6);
      ask_for_rows(b.ahead + j, b.ahead_stride, kTileKeys);
      _tile_stored(0, sums[0], kTileWords * 4);
      _tile_stored(1, sums[1], kTileWords * 4);
      asm volatile("" ::: "memory");
      for (int64_t r = 0; r < each; ++r) {
        float* const out = b.out + r * b.out_step + j;
        Vec column[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const int64_t at = (2 * r + i) * kTileWords;
          const Vec step = add_flushed(load(sums[0] + at), load(sums[1] + at));
          column[i] = add_flushed(second ? load(out + i * kTileWords) : zero(), step);
          infinite |= _mm512_fpclass_ps_mask(column[i].v, 0x99);
        }
        if (second) {
          const __m512i low_half = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
          const __m512i high_half = _mm512_add_epi32(low_half, _mm512_set1_epi32(8));
          const __m512 evens = column[0].v, odds = column[1].v;
          column[0] = {_mm512_permutex2var_ps(evens, low_half, odds)}, column[1] = {_mm512_permutex2var_ps(evens, high_half, odds)};
        }
        store(out, column[0]);
        store(out + kTileWords, column[1]);
      }
    }
    return infinite == 0;
  }
};
template <class S> struct TilesFrom : OnTiles<PairsFrom<S>> {};
template <class S> constexpr bool kTiles<TilesFrom<S>> = true;
template <class S> struct StoredAs<AttentionTiles, S> {
  using Words = TilesFrom<S>;
};
template <> struct StoredAs<AttentionTiles, bf16> {
  using Words = AttentionTiles;
};

template <>
inline void chunk_products<AttentionTiles>(const float* x, int64_t x_step, int64_t words, const float* turned, int64_t rows,
                                           const int* begin, const int* end, float* out) {
  const VectorSpan seen = vectors_seen(rows, begin, end);
  if (seen.first < seen.last)
    tile_product(x, x_step, (words + kTileWords - 1) / kTileWords, turned + seen.first, kChunk,
                 (seen.last - seen.first + kWidth - 1) / kWidth, out + seen.first, kChunk, false);
}

// Row c, `width` columns, = or += a row of words times words across, of which what stands beside words outside [begin, end) is
// hidden: the same bits as in a tile if all are finite.
static inline void tile_row(const float* words, int64_t steps, const float* b, int64_t b_step, int64_t width, int begin, int end,
                            float* c, bool add_up) {
  alignas(64) float seen[kTileKeys * kTileWords], out[kTileRows * kTileWords];
  for (int64_t j = 0; j < width; j += kTileWords) {
    for (int i = 0; i < steps * kTileKeys; i += 2)
      store(seen + i / 2 * kTileWords,
            AttentionPairs::seen(load(b + i / 2 * b_step + j), i >= begin && i < end, i + 1 >= begin && i + 1 < end));
    for (int r = 0; r < kTileRows; ++r) store(out + r * kTileWords, load(c + j));
    tile_product(words, 0, steps, seen, kTileWords, 1, out, kTileWords, add_up);  // the same row 16 times
    store(c + j, load(out));
  }
}

// c += words times words across, for up to 16 rows; gradients, whose factors are 1.
static inline void tile_gradients(const float* words, int64_t step, int64_t steps, const float* b, int64_t b_step, int64_t cols,
                                  int64_t rows, const int* begin, const int* end, bool finite, float* c, int64_t c_step) {
  if (!finite) {
    for (int64_t r = 0; r < rows; ++r)
      if (begin[r] < end[r]) tile_row(words + r * step, steps, b, b_step, cols, begin[r], end[r], c + r * c_step, true);
    return;
  }
  alignas(64) float sums[kTileRows * kChunk];
  for (int64_t j = 0; j < cols; j += kChunk) {
    const int64_t width = at_most(cols - j, kChunk);
    if (rows == kTileRows) {
      tile_product(words, step, steps, b + j, b_step, width / kTileWords, c + j, c_step, true);
      continue;
    }
    const auto each = [&](const auto& body) {  // what lies behind these rows is not ours
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < width; i += kWidth) body(c + r * c_step + j + i, sums + r * kChunk + i);
    };
    each([](float* of_c, float* own) { store(own, load(of_c)); });
    tile_product(words, step, steps, b + j, b_step, width / kTileWords, sums, kChunk, true);
    each([](float* of_c, float* own) { store(of_c, load(own)); });
  }
}

// Up to 16 rows. Words of halves of the chunk that a row does not see become zero.
template <> struct Product<AttentionTiles, false> {
  float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step, cols;  // cols in words, whole vectors
  float* c;
  int64_t c_step;

  void run(int64_t rows, int64_t, const int* begin, const int* end, bool finite, const float* factor) const {
    constexpr int64_t kSteps = kChunk / kTileKeys;
    if (factor == kUnchanged) return tile_gradients(a, a_step, kSteps, b, b_step, cols, rows, begin, end, finite, c, c_step);
    for (int64_t r = 0; r < rows; ++r)
      for (int half = 0; half < kChunk; half += kTileKeys)
        if (begin[r] >= end[r] || end[r] <= half || begin[r] >= half + kTileKeys) store(a + r * a_step + half / 2, zero());
    alignas(64) float sums[kTileRows * kChunk];
    for (int64_t j = 0; j < cols; j += kChunk) {
      const int64_t width = at_most(cols - j, kChunk);
      if (finite) tile_product(a, a_step, kSteps, b + j, b_step, width / kTileWords, sums, kChunk, false);
      for (int64_t r = 0; r < rows; ++r) {
        if (begin[r] >= end[r]) continue;
        if (!finite) tile_row(a + r * a_step, kSteps, b + j, b_step, width, begin[r], end[r], sums + r * kChunk, false);
        AttentionTiles::add_sums(c + r * c_step + j, factor[r], sums + r * kChunk, width);
      }
    }
  }
};
// Gradients. A is across: its rows of words are turned, for 16 rows of C at a time, which are all there.
template <> struct Product<AttentionTiles, true> {
  const float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step, cols;  // cols in words, whole vectors
  float* c;
  int64_t c_step;

  void run(int64_t rows, int64_t, const int* begin, const int* end, bool finite, const float*) const {
    constexpr int64_t kAlong = kChunk / 2;
    alignas(64) float along[kTileRows * kAlong];
    int last = 0;
    for (int64_t r = 0; r < rows; ++r) last = end[r] > last ? end[r] : last;
    const int64_t steps = (last + kTileKeys - 1) / kTileKeys;
    for (int64_t row = 0; row < rows; row += kTileRows) {
      for (int64_t s = 0; s < steps; ++s)
        amx_transpose((const char*)(a + s * kTileWords * a_step + row), a_step * 4, (bf16*)(along + s * kTileWords), 2 * kAlong);
      tile_gradients(along, kAlong, steps, b, b_step, cols, finite ? kTileRows : at_most(rows - row, kTileRows), begin + row,
                     end + row, finite, c + row * c_step, c_step);
    }
  }
};

static void attention_on_tiles(const AttentionArgs<bf16>& args, const Share& share) {
  const bool of_bf16 = args.kv == KvType::same || args.kv == KvType::bf16;
  const bool in_place = is_decode(args) && of_bf16 && decode_in_place<AttentionTiles>(args);
  if (in_place) AttentionTiles::begin(args.heads / args.kv_heads);
  else amx_begin(is_decode(args) ? decode_rows(args) : kTileRows);
  attention_of<AttentionTiles>(args, share);
  _tile_release();
}
static void attention_backward_on_tiles(const AttentionBackwardArgs<bf16>& args, const Share& share) {
  amx_begin();
  attention_backward_of<AttentionTiles>(args, share);
  _tile_release();
}
