// Matrix product of bf16 on the tiles of AMX: 16 rows of 64 bytes, C (16 x 16 floats) += A (16 rows of 32 k) times B (16
// pairs of k, each pair's 16 columns side by side). Sums are in float; the chain of every element runs over blocks of 32 k
// from k = 0 on, whatever the tile, so a row has the same bits alone or in a batch.
//
// Registers: 2 x 2 tiles of C, two of A, two of B: all eight. A is read where it lies if that is whole rows of whole blocks;
// B is packed into panels of 32 columns. Block sizes are in gemm_tiles.h.

struct alignas(64) AmxConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// All eight tiles are 16 rows of 64 bytes.
static inline void amx_begin() {
  AmxConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  asm volatile("" ::: "memory");
  _tile_loadconfig(&config);
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

// 16 x 16 dwords: rows in, columns out.
static inline void amx_transpose(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// 16 rows of `depth` <= 32 k each (row i at src + i * ld, those from `rows` on are zero), transposed as pairs: pair p of
// row i goes to dst[p * step + 2 i].
static inline void amx_turn(const bf16* src, int64_t ld, int64_t rows, int64_t depth, bf16* dst, int64_t step) {
  const __mmask32 mask = depth >= 32 ? ~0u : (1u << depth) - 1u;
  __m512i block[16];
  if (rows == 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) block[i] = _mm512_maskz_loadu_epi16(mask, src + i * ld);
  } else {
    for (int i = 0; i < 16; ++i) block[i] = i < rows ? _mm512_maskz_loadu_epi16(mask, src + i * ld) : _mm512_setzero_si512();
  }
  amx_transpose(block);
#pragma GCC unroll 16
  for (int p = 0; p < 16; ++p) _mm512_storeu_si512(dst + p * step, block[p]);
}

// A panel of B: `cols` <= 32 columns, `depth` k from b on -> dst[pair][32 columns][2], zeros up to whole blocks of k.
static inline void amx_pack_b(const bf16* b, int64_t ldb, bool transposed, int64_t cols, int64_t depth, bf16* dst) {
  const int64_t padded = (depth + kAmxK - 1) / kAmxK * kAmxK;
  if (transposed) {
    for (int64_t k = 0; k < padded; k += kAmxK) {
      const int64_t left = depth - k < kAmxK ? depth - k : kAmxK;
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t rows = cols - 16 * half < 16 ? (cols - 16 * half > 0 ? cols - 16 * half : 0) : 16;
        amx_turn(b + 16 * half * ldb + k, ldb, rows, left, dst + k * 32 + 32 * half, 64);
      }
    }
    return;
  }
  for (int64_t k = 0; k < padded; k += 2) {
    if (k < depth) amx_pair_rows(b + k * ldb, k + 1 < depth ? b + (k + 1) * ldb : nullptr, cols, dst + k * 32);
    else memset(dst + k * 32, 0, 128);
  }
}

// `rows` <= 32 rows of A as [row][padded depth]; zeros elsewhere. transposed: A is stored (K, M).
static inline void amx_pack_a(const bf16* a, int64_t lda, bool transposed, int64_t rows, int64_t depth, bf16* dst) {
  const int64_t padded = (depth + kAmxK - 1) / kAmxK * kAmxK;
  if (!transposed) {
    for (int64_t r = 0; r < kAmxTile; ++r) {
      for (int64_t k = 0; k < padded; k += 32) {
        const int64_t left = depth - k;
        const __mmask32 mask = r >= rows ? 0u : left >= 32 ? ~0u : (1u << left) - 1u;
        _mm512_storeu_si512(dst + r * padded + k, _mm512_maskz_loadu_epi16(mask, a + r * lda + k));
      }
    }
    return;
  }
  alignas(64) bf16 pairs[16 * 64];  // [pair][32 rows][2]
  for (int64_t k = 0; k < padded; k += kAmxK) {
    for (int64_t p = 0; p < kAmxK; p += 2) {
      const int64_t at = k + p;
      if (at < depth) amx_pair_rows(a + at * lda, at + 1 < depth ? a + (at + 1) * lda : nullptr, rows, pairs + p * 32);
      else memset(pairs + p * 32, 0, 128);
    }
    for (int64_t half = 0; half < 2; ++half) {
      __m512i block[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) block[i] = _mm512_loadu_si512(pairs + i * 64 + half * 32);
      amx_transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(dst + (16 * half + i) * padded + k, block[i]);
    }
  }
}

// c (32 x 32 floats) = or += a b. a: rows at `lda` elements; b: a packed panel; `steps` of 32 k.
// kRows, kCols: how many of the 2 x 2 tiles are real.
template <int kRows, int kCols>
static void amx_product(const bf16* a, int64_t lda, const bf16* b, int64_t steps, bool add, float* c) {
  const int64_t a_bytes = lda * 2, c_bytes = kAmxTile * 4;
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
    _tile_loadd(4, a + s * kAmxK, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (kCols > 1) _tile_dpbf16ps(1, 4, 7);
    if (kRows > 1) {
      _tile_loadd(5, a + s * kAmxK + 16 * lda, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (kCols > 1) _tile_dpbf16ps(3, 5, 7);
    }
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

static void amx_block(const GemmArgs<bf16>& args, const GemmBlock& block, int64_t batch, const GemmGrid& grid, void* scratch) {
  const AmxScratch sizes = amx_scratch(grid, args.k);
  bf16* panel = (bf16*)scratch;
  bf16* packed = panel + sizes.panel;
  float* partial = sizes.partial ? (float*)(packed + sizes.packed) : nullptr;
  alignas(64) float one[kAmxTile * kAmxTile];
  const bf16 *a = args.a + batch * args.stride_a, *b = args.b + batch * args.stride_b;
  const GemmEpilogue<bf16> epilogue = gemm_epilogue(args, batch);
  const int64_t rows = block.row_end - block.row_begin, cols = block.col_end - block.col_begin;
  const int64_t tiles = (rows + kAmxTile - 1) / kAmxTile, panels = (cols + kAmxTile - 1) / kAmxTile;
  int64_t k = 0;
  do {  // once even if K is 0: the epilogue of nothing
    const int64_t now = args.k - k < kAmxDepth ? args.k - k : kAmxDepth, steps = (now + kAmxK - 1) / kAmxK;
    const bool first = k == 0, last = k + now == args.k, whole = !args.trans_a && now % kAmxK == 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = block.row_begin + i * kAmxTile, left = block.row_end - row;
      const bf16* tile = args.trans_a ? a + k * args.lda + row : a + row * args.lda + k;
      if (!whole || left < kAmxTile)
        amx_pack_a(tile, args.lda, args.trans_a, left < kAmxTile ? left : kAmxTile, now, packed + i * kAmxTile * steps * kAmxK);
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t col = block.col_begin + p * kAmxTile, wide = block.col_end - col < kAmxTile ? block.col_end - col : kAmxTile;
      amx_pack_b(b + (args.trans_b ? col * args.ldb + k : k * args.ldb + col), args.ldb, args.trans_b, wide, now, panel);
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t row = block.row_begin + i * kAmxTile, left = block.row_end - row;
        const int64_t height = left < kAmxTile ? left : kAmxTile;
        const bool in_place = whole && height == kAmxTile;
        const bf16* tile = in_place ? a + row * args.lda + k : packed + i * kAmxTile * steps * kAmxK;
        const int64_t step = in_place ? args.lda : steps * kAmxK;
        float* sums = partial ? partial + (i * panels + p) * kAmxTile * kAmxTile : one;
        if (first && args.accumulate) amx_load_c(epilogue, row, height, col, wide, sums);
        const bool add = !first || args.accumulate;
        if (height > 16) (wide > 16 ? amx_product<2, 2> : amx_product<2, 1>)(tile, step, panel, steps, add, sums);
        else (wide > 16 ? amx_product<1, 2> : amx_product<1, 1>)(tile, step, panel, steps, add, sums);
        if (last) gemm_finish(epilogue, sums, kAmxTile, row, height, col, wide);
      }
    }
    k += now;
  } while (k < args.k);
}

static void gemm_amx(const GemmArgs<bf16>& args, const Share& share) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return;
  const GemmGrid grid = gemm_grid(args.m, args.n, args.k, args.batch);
  const GemmBlock block = gemm_block(grid, share.index, args.m, args.n, args.batch);
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
