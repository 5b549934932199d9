// Matrix product of bf16 on the tiles of AMX: 16 rows of 64 bytes, C (16 x 16 floats) += A (16 rows of 32 k) times B (16
// pairs of k, each pair's 16 columns side by side). Sums are in float; the chain of every element runs over blocks of 32 k
// from k = 0 on, whatever the tile, so a row has the same bits alone or in a batch.
//
// Registers: 2 x 2 tiles of C, two of A, two of B: all eight. A is read where it lies if that is whole rows of whole blocks;
// B is packed into panels of 32 columns. Of few rows times a transposed B the transpose is computed, so that it is B that is read
// where it lies. A tile product takes 64 cycles a step in a unit of its own, but loads and stores beside it are not free, so what
// is packed is kept small; arithmetic is free. Block sizes are in gemm_tiles.h.

struct alignas(64) AmxConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tile i has rows_of(i) rows of bytes_of(i) bytes.
template <class Rows, class Bytes> static inline void amx_configure(const Rows& rows_of, const Bytes& bytes_of) {
  AmxConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = (uint16_t)bytes_of(i);
    config.rows[i] = (uint8_t)rows_of(i);
  }
  asm volatile("" ::: "memory");
  _tile_loadconfig(&config);
}
// All eight tiles are 16 rows of 64 bytes, or the first five `rows`: then these are for A and C.
static inline void amx_begin(int64_t rows = 16) {
  amx_configure([&](int i) { return i < 5 ? rows : 16; }, [](int) { return 64; });
}

// Two rows of up to 32 bf16 each -> pairs (even[i], odd[i]).
static inline void amx_pair_rows(const bf16* even, const bf16* odd, int64_t cols, bf16* dst) {
  const __mmask32 mask = cols >= 32 ? ~0u : (1u << cols) - 1u;
  const __m512i a = _mm512_maskz_loadu_epi16(mask, even);
  const __m512i b = odd ? _mm512_maskz_loadu_epi16(mask, odd) : _mm512_setzero_si512();
  const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
  // unpack works inside groups of 8 columns: 0-3 and 4-7 of each group lie in low and high.
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  _mm512_storeu_si512(dst, _mm512_permutex2var_epi64(low, first, high));
  _mm512_storeu_si512(dst + 32, _mm512_permutex2var_epi64(low, second, high));
}

// 16 rows of 16 dwords, `ld` bytes apart -> column p to dst + p * step. Quarters of rows j, j + 4, j + 8 and j + 12 are put into
// one register by loads, so that only turning 4 x 4 dwords is left for the one port that shuffles.
static inline void amx_transpose(const char* src, int64_t ld, bf16* dst, int64_t step) {
#pragma GCC unroll 4
  for (int quarter = 0; quarter < 4; ++quarter, src += 16) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const auto part = [&](int row) { return _mm_loadu_si128((const __m128i*)(src + row * ld)); };
      r[j] = _mm512_castsi128_si512(part(j));
      r[j] = _mm512_inserti32x4(r[j], part(j + 4), 1);
      r[j] = _mm512_inserti32x4(r[j], part(j + 8), 2);
      r[j] = _mm512_inserti32x4(r[j], part(j + 12), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    bf16* to = dst + 4 * quarter * step;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi64(a, c));
    _mm512_storeu_si512(to + step, _mm512_unpackhi_epi64(a, c));
    _mm512_storeu_si512(to + 2 * step, _mm512_unpacklo_epi64(b, d));
    _mm512_storeu_si512(to + 3 * step, _mm512_unpackhi_epi64(b, d));
  }
}

// 16 rows of `depth` <= 32 k each (row i at src + i * ld, those from `rows` on are zero), transposed as pairs: pair p of
// row i goes to dst[p * step + 2 i].
static inline void amx_turn(const bf16* src, int64_t ld, int64_t rows, int64_t depth, bf16* dst, int64_t step) {
  if (rows == 16 && depth >= 32) {
    amx_transpose((const char*)src, ld * 2, dst, step);
    return;
  }
  alignas(64) bf16 padded[16 * 32];
  const __mmask32 mask = depth >= 32 ? ~0u : (1u << depth) - 1u;
  for (int i = 0; i < 16; ++i)
    _mm512_store_si512(padded + 32 * i, i < rows ? _mm512_maskz_loadu_epi16(mask, src + i * ld) : _mm512_setzero_si512());
  amx_transpose((const char*)padded, 64, dst, step);
}

// Columns from c on that a tile or panel of 32 has.
static inline int64_t amx_width(int64_t c, int64_t count) { return count - c < kAmxTile ? count - c : kAmxTile; }

// Panels of B: `cols` columns, `depth` k from b on -> panel p at dst + p * `step`, [pair][32 columns][2], zeros up to whole
// steps of k. Row by row of what is stored, because only whole rows are fetched ahead by the hardware.
static inline void amx_pack_b(const bf16* b, int64_t ldb, bool transposed, int64_t cols, int64_t depth, bf16* dst, int64_t step) {
  const int64_t padded = gemm_steps(depth, kAmxK) * kAmxK;
  if (padded == 0) return;  // then there is no scratch either
  if (transposed) {
    for (int64_t c = 0; c < cols; c += 16) {
      bf16* to = dst + c / kAmxTile * step + c % kAmxTile * 2;
      for (int64_t k = 0; k < depth; k += kAmxK)
        amx_turn(b + c * ldb + k, ldb, cols - c < 16 ? cols - c : 16, depth - k < kAmxK ? depth - k : kAmxK, to + k * kAmxTile, 64);
    }
    if (cols % kAmxTile > 0 && cols % kAmxTile <= 16) {  // the second half of the last panel
      bf16* to = dst + cols / kAmxTile * step + 32;
      for (int64_t k = 0; k < padded; k += 2) memset(to + k * kAmxTile, 0, 64);
    }
    return;
  }
  for (int64_t k = 0; k < padded; k += 2) {
    const bf16* row = b + k * ldb;
    for (int64_t c = 0; c < cols; c += kAmxTile, row += kAmxTile) {
      bf16* to = dst + c / kAmxTile * step + k * kAmxTile;
      if (k < depth) amx_pair_rows(row, k + 1 < depth ? row + ldb : nullptr, amx_width(c, cols), to);
      else memset(to, 0, 128);
    }
  }
}

// Tiles of A: `rows` rows -> tile i at dst + i * step, [step of 32 k][32 rows][32 k]; zeros elsewhere. transposed: A is stored
// (K, M).
static inline void amx_pack_a(const bf16* a, int64_t lda, bool transposed, int64_t rows, int64_t depth, bf16* dst, int64_t step) {
  alignas(64) bf16 pairs[16 * 64];  // [pair][32 rows][2]
  for (int64_t k = 0; k < depth; k += kAmxK) {
    const int64_t left = depth - k;
    for (int64_t r = 0; r < rows; r += kAmxTile) {
      bf16* to = dst + r / kAmxTile * step + k * kAmxTile;
      const int64_t high = amx_width(r, rows);
      if (!transposed) {
        const __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1u;
        for (int64_t i = 0; i < high; ++i)
          _mm512_storeu_si512(to + i * kAmxK, _mm512_maskz_loadu_epi16(mask, a + (r + i) * lda + k));
        for (int64_t i = high; i < kAmxTile; ++i) _mm512_storeu_si512(to + i * kAmxK, _mm512_setzero_si512());
        continue;
      }
      for (int64_t p = 0; p < kAmxK; p += 2) {
        const bf16* row = a + (k + p) * lda + r;
        if (p < left) amx_pair_rows(row, p + 1 < left ? row + lda : nullptr, high, pairs + p * 32);
        else memset(pairs + p * 32, 0, 128);
      }
      amx_transpose((const char*)pairs, 128, to, kAmxK);
      amx_transpose((const char*)(pairs + 32), 128, to + 16 * kAmxK, kAmxK);
    }
  }
}

// What is done beside a product, a little at each step, while the tile unit computes: lines are asked for (of `c_rows` rows of C,
// and of what goes into them, and of `a_rows` rows of the tile of A that is next), and the tile before gets its activation.
struct AmxBeside {
  GemmLines lines;
  int64_t c_rows;
  const char* a;
  int64_t a_rows, a_step;
  const GemmEpilogue<bf16>* epilogue;
  const float* sums;
  int64_t row, rows, col, cols, rows_now;

  void finish(int64_t now) {
    if (now > rows) now = rows;
    if (now <= 0) return;
    gemm_finish(*epilogue, sums, kAmxTile, row, now, col, cols);
    sums += now * kAmxTile, row += now, rows -= now;
  }
};

// Rows of a tile of A, `row` elements apart; steps of 32 k, `step` elements apart.
struct AmxRows {
  const bf16* at;
  int64_t row, step;
};

// c (32 x 32 floats) = or += a b. b: a packed panel; `steps` of 32 k.
// kRows, kCols: how many of the 2 x 2 tiles are real.
template <int kRows, int kCols>
static void amx_product(AmxRows a, const bf16* b, int64_t steps, bool add, float* c, AmxBeside& beside) {
  const int64_t a_bytes = a.row * 2, c_bytes = kAmxTile * 4;
  GemmLines lines = beside.lines;
  const char* next_a = beside.a;
  const int64_t c_rows = beside.c_rows, a_rows = beside.a_rows, a_step = beside.a_step;
  asm volatile("" ::: "memory");  // the tile instructions do not say what they read and write
  if (add) {
    _tile_loadd(0, c, c_bytes);
    if (kCols > 1) _tile_loadd(1, c + 16, c_bytes);
    if (kRows > 1) _tile_loadd(2, c + 16 * kAmxTile, c_bytes);
    if (kRows > 1 && kCols > 1) _tile_loadd(3, c + 16 * kAmxTile + 16, c_bytes);
  } else {
    _tile_zero(0);
    if (kCols > 1) _tile_zero(1);
    if (kRows > 1) _tile_zero(2);
    if (kRows > 1 && kCols > 1) _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(6, b + s * 1024, 128);
    if (kCols > 1) _tile_loadd(7, b + s * 1024 + 32, 128);
    _tile_loadd(4, a.at, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (kCols > 1) _tile_dpbf16ps(1, 4, 7);
    if (kRows > 1) {
      _tile_loadd(5, a.at + 16 * a.row, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (kCols > 1) _tile_dpbf16ps(3, 5, 7);
    }
    a.at += a.step;
    for (int64_t r = 0; r < c_rows; ++r) gemm_ahead_row(lines.c, lines.slope, lines.given, lines.step, lines.second);
    const char* ahead = next_a;
    for (int64_t r = 0; r < a_rows; ++r, ahead += a_step) __builtin_prefetch(ahead, 0, 2);
    next_a += 64;
    if (beside.rows > 0) beside.finish(beside.rows_now);
  }
  _tile_stored(0, c, c_bytes);
  if (kCols > 1) _tile_stored(1, c + 16, c_bytes);
  if (kRows > 1) _tile_stored(2, c + 16 * kAmxTile, c_bytes);
  if (kRows > 1 && kCols > 1) _tile_stored(3, c + 16 * kAmxTile + 16, c_bytes);
  asm volatile("" ::: "memory");
}

// C (32 x 32, of which rows x cols count) as floats: the beginning of sums that accumulate.
static inline void amx_load_c(const GemmEpilogue<bf16>& e, int64_t row, int64_t rows, int64_t col, int64_t cols, float* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (row + r) * e.ldc + col;
    for (int64_t j = 0; j < cols; j += kWidth) {
      const int64_t count = cols - j < kWidth ? cols - j : kWidth;
      store(sums + r * kAmxTile + j, e.sums ? load_n(e.sums + at + j, count) : load_n(e.c + at + j, count));
    }
  }
}

// `rows` x `cols` <= 32 x 32 sums, transposed.
static inline float* amx_turned_sums(const float* sums, int64_t rows, int64_t cols, float* to) {
  for (int64_t r = 0; r < rows; r += 16) {
    for (int64_t c = 0; c < cols; c += 16)
      amx_transpose((const char*)(sums + r * kAmxTile + c), kAmxTile * 4, (bf16*)(to + c * kAmxTile + r), 2 * kAmxTile);
  }
  return to;
}

// What a share multiplies: rows that lie in place (unless they must be packed) and columns that are packed; the other way round
// where the transpose is computed.
struct AmxSide {
  const bf16* at;
  int64_t ld, begin, end, tiles;
  bool across;  // k lies along rows of what is stored
  const bf16* of(int64_t i, int64_t k) const { return at + (across ? k * ld + i : i * ld + k); }
};
static inline AmxSide amx_side(const bf16* at, int64_t ld, bool across, int64_t begin, int64_t end) {
  return {at, ld, begin, end, gemm_steps(end - begin, kAmxTile), across};
}

static void amx_block(const GemmArgs<bf16>& args, const GemmBlock& block, int64_t batch, const GemmGrid& grid, void* scratch) {
  const AmxScratch sizes = amx_scratch(grid, args.k);
  bf16* const panels = (bf16*)scratch;
  float* const partial = sizes.partial ? (float*)(panels + sizes.panels + sizes.tile) : nullptr;
  alignas(64) float two[2][kAmxTile * kAmxTile];
  alignas(64) float turns[kAmxTile * kAmxTile];
  const GemmEpilogue<bf16> epilogue = gemm_epilogue(args, batch);
  const bool turned = amx_turned(args);
  // Without K nothing of A and B is read, and they may be null.
  const bf16* a = args.k > 0 ? args.a + batch * args.stride_a : (const bf16*)two;
  const bf16* b = args.k > 0 ? args.b + batch * args.stride_b : (const bf16*)two;
  AmxSide in_place = amx_side(a, args.lda, args.trans_a, block.row_begin, block.row_end);
  AmxSide other = amx_side(b, args.ldb, !args.trans_b, block.col_begin, block.col_end);
  if (turned) {
    const AmxSide swapped = in_place;
    in_place = other, other = swapped;
  }
  const int64_t depth = amx_depth(args.k);
  bf16* const packed = panels + other.tiles * kAmxTile * depth;
  AmxBeside beside = {};
  beside.epilogue = &epilogue, beside.a_step = in_place.ld * (int64_t)sizeof(bf16);
  const bool later = args.act != Act::none && !turned;  // the rest is stores, which do not hide
  int64_t k = 0;
  do {  // once even if K is 0: the epilogue of nothing
    const int64_t now = args.k - k < depth ? args.k - k : depth, steps = (now + kAmxK - 1) / kAmxK;
    const bool first = k == 0, last = k + now == args.k;
    // In place, unless rows that are used often would share cache sets.
    const bool whole = !in_place.across && now % kAmxK == 0 && (beside.a_step % 4096 != 0 || other.tiles <= 4);
    const int64_t step = steps * kAmxTile * kAmxK;
    beside.rows_now = steps > 0 ? gemm_steps(kAmxTile, steps) : kAmxTile;
    beside.c_rows = last ? beside.rows_now : 0;
    amx_pack_b(other.of(other.begin, k), other.ld, !other.across, other.end - other.begin, now, panels, step);
    if (in_place.across)
      amx_pack_a(in_place.of(in_place.begin, k), in_place.ld, true, in_place.end - in_place.begin, now, packed, step);
    for (int64_t i = 0; i < in_place.tiles; ++i) {
      const int64_t row = in_place.begin + i * kAmxTile, height = amx_width(row, in_place.end);
      AmxRows tile = {packed + (in_place.across ? i * step : 0), kAmxK, kAmxTile * kAmxK};
      if (whole && height == kAmxTile) tile = {in_place.of(row, k), in_place.ld, kAmxK};
      else if (!in_place.across) amx_pack_a(in_place.of(row, k), in_place.ld, false, height, now, packed, 0);
      // The rows of the next tile, if it is not packed in advance.
      const bool more = !in_place.across && (i + 1 < in_place.tiles || !last);
      const int64_t next = i + 1 < in_place.tiles ? row + kAmxTile : in_place.begin, next_k = i + 1 < in_place.tiles ? k : k + now;
      const int64_t next_rows = more ? amx_width(next, in_place.end) : 0;
      for (int64_t p = 0; p < other.tiles; ++p) {
        const int64_t col = other.begin + p * kAmxTile, wide = amx_width(col, other.end), number = i * other.tiles + p;
        float* sums = partial ? partial + number * kAmxTile * kAmxTile : two[number % 2];
        if (first && args.accumulate) amx_load_c(epilogue, row, height, col, wide, sums);
        const bool add = !first || args.accumulate;
        const int64_t c_row = turned ? col : row, c_rows = turned ? wide : height, c_col = turned ? row : col;
        const int64_t c_cols = turned ? height : wide;
        if (last) gemm_lines(beside.lines, epilogue, c_row * epilogue.ldc + c_col, c_rows, c_cols);
        const int64_t from_row = p * next_rows / other.tiles;
        beside.a = (const char*)in_place.of(next, next_k) + from_row * beside.a_step;
        beside.a_rows = (p + 1) * next_rows / other.tiles - from_row;
        (height > 16 ? wide > 16 ? amx_product<2, 2> : amx_product<2, 1> : wide > 16 ? amx_product<1, 2> : amx_product<1, 1>)(
            tile, panels + p * step, steps, add, sums, beside);
        if (!last) continue;
        beside.finish(beside.rows);
        if (turned) sums = amx_turned_sums(sums, height, wide, turns);
        beside.sums = sums, beside.row = c_row, beside.rows = c_rows, beside.col = c_col, beside.cols = c_cols;
        if (!later) beside.finish(c_rows);
      }
    }
    k += now;
  } while (k < args.k);
  beside.finish(beside.rows);
}

static void gemm_amx(const GemmArgs<bf16>& args, const Share& share) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return;
  const GemmGrid grid = amx_grid(args);
  const int64_t units = gemm_shares(grid), unit = share.index * units / share.count;  // no more units than shares
  if (unit == (share.index + 1) * units / share.count) return;
  const GemmBlock block = gemm_block(grid, unit, args.m, args.n, args.batch);
  amx_begin();
  for (int64_t p = block.batch_begin; p < block.batch_end; ++p) amx_block(args, block, p, grid, share.scratch);
  _tile_release();
}

// The tiles' peak (PeakArgs): four sums that do not wait for each other, the products of each cancel.
static void peak_amx(const PeakArgs<bf16>& args, const Share& share) {
  constexpr int64_t kPass = 4 * 2 * 16 * 16 * kAmxK;
  static_assert(kPeakGrain % kPass == 0, "a share is whole passes");
  alignas(64) uint32_t a[256], b[256];
  alignas(64) float sums[256];
  for (int i = 0; i < 256; ++i) a[i] = 0x3f803f80u, b[i] = 0xbf803f80u, sums[i] = 1.0f;  // pairs 1, 1 and 1, -1
  amx_begin();
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums, 64);
  _tile_loadd(2, sums, 64);
  _tile_loadd(3, sums, 64);
  _tile_loadd(4, a, 64);
  _tile_loadd(5, b, 64);
  for (int64_t pass = 0; pass < kPeakGrain / kPass; ++pass) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, sums, 64);
  asm volatile("" ::: "memory");
  _tile_release();
  float total = 0.0f;
  for (int i = 0; i < 256; ++i) total += sums[i];
  args.y[share.index] = total / 256.0f;
}
