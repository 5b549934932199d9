// Blocks of quantized weights, whatever their type, as one form that a tile reads from L1: bytes of codes in quads of k, and
// a float scale (and what is added) for each part and column. A stretch is as many whole blocks of a panel as 256 k hold.

constexpr int64_t kQStretch = 256;

struct QStretch {
  alignas(64) uint8_t codes[kQStretch * kQCols];
  alignas(64) float scales[kQMostParts * kQCols];
  alignas(64) float leasts[kQMostParts * kQCols];
};

// How long parts are, of the types that have them: what their planes say, so a tile of one pair of planes knows it.
constexpr int64_t q_plane_part(int low, int high) { return low == 2 || high == 2 ? kQLeastGroup : 2 * kQLeastGroup; }
constexpr bool q_planes_say_parts() {
  for (const QTraits& t : kQTraits)
    if (t.part && t.part != q_plane_part(t.low, t.high)) return false;
  return true;
}
static_assert(q_planes_say_parts());

// Codes whose planes have L and H bits, put together, and looked up where there is a table. Lanes of `kStep` quads at a time.
template <int L, int H, bool Book> struct QPlanes {
  static constexpr int kBits = Book ? 8 : L + H;
  static constexpr int kLow = 8 / L, kHigh = H ? 8 / H : 1, kStep = L == 2 ? 4 : kLow > kHigh ? kLow : kHigh;
  static constexpr int64_t kPart = q_plane_part(L, H);
  static constexpr int32_t kLowMask = 0x01010101 * ((1 << L) - 1), kHighMask = 0x01010101 * (((1 << H) - 1) << L);
  // Quad quad + q of a block's columns from byte `col` of a row of codes on; `quad` is a multiple of kStep.
  static inline __attribute__((always_inline)) Ints take(const uint8_t* low, const uint8_t* high, const uint8_t* table,
                                                         int64_t quad, int q, int64_t col) {
    Ints out = field(codes(low + (quad / kLow + q / kLow) * 4 * kQCols + col), L * (q % kLow), kLowMask);
    if (H) {
      Ints top = codes(high + quad / kHigh * 4 * kQCols + col);
      if (kHigh > kStep) top = shifted(top, H * (int)(quad % kHigh));
      out = both(out, field(top, H * q - L, kHighMask));
    }
    return Book ? look_up(table, out) : out;
  }
  static inline void expand(const uint8_t* low, const uint8_t* high, const uint8_t* table, int64_t quads, uint8_t* to) {
    for (int64_t quad = 0; quad < quads; quad += kStep) {
#pragma GCC unroll 2
      for (int64_t col = 0; col < 4 * kQCols; col += 4 * kWidth) {
        Ints out[kStep];
#pragma GCC unroll 8
        for (int q = 0; q < kStep; ++q) out[q] = take(low, high, table, quad, q, col);
#pragma GCC unroll 8
        for (int q = 0; q < kStep; ++q) store(to + (quad + q) * 4 * kQCols + col, out[q]);
      }
    }
  }
};

// Places of a table's numbers, 128 added: what codes of a table are multiplied as.
struct QTable {
  uint8_t at[16];
};
static constexpr QTable q_book_bytes(const int8_t (&values)[16]) {
  QTable bytes = {};
  for (int i = 0; i < 16; ++i) bytes.at[i] = (uint8_t)(values[i] + 128);
  return bytes;
}
alignas(16) static constexpr QTable kQIq4Bytes = q_book_bytes(kQIq4), kQMxfp4Bytes = q_book_bytes(kQMxfp4);

static inline const uint8_t* q_table(QBook book) { return book == QBook::iq4 ? kQIq4Bytes.at : kQMxfp4Bytes.at; }

// The planes of a type with codes of less than 8 bits, as an argument of f.
template <class F> static inline auto q_planes_of(const QTraits& t, const F& f) {
  if (t.book != QBook::none) return f(QPlanes<4, 0, true>{});
  if (t.low == 2) return t.high ? f(QPlanes<2, 1, false>{}) : f(QPlanes<2, 0, false>{});
  return t.high == 2 ? f(QPlanes<4, 2, false>{}) : t.high ? f(QPlanes<4, 1, false>{}) : f(QPlanes<4, 0, false>{});
}

static inline Vec q_numbers(QScale scale, const uint8_t* p, int64_t col) {
  if (scale == QScale::half) return load_halves(p + 2 * col);
  if (scale == QScale::brain) return load((const bf16*)p + col);
  return load((const float*)p + col);
}
static inline Vec negative(Vec a) { return sub(zero(), a); }

// Scales of the one part of a group: the same numbers as q_parts.
static inline void q_expand_scale(const QTraits& t, const uint8_t* p, float* scales, float* leasts) {
  const uint8_t* least = p + kQCols * q_scale_bytes(t.scale);
  for (int64_t col = 0; col < kQCols; col += kWidth) {
    if (t.scale == QScale::exponent) {
      // 2^n, below -126 by two factors.
      const Vec n = sub(to_floats(load_bytes(p + col)), set1(128.0f)), least = set1(-126.0f);
      const Vec rest = select(lt(n, set1(-127.0f)), set1(0.25f), select(lt(n, least), set1(0.5f), set1(1.0f)));
      store(scales + col, mul(pow2i(max(n, least)), rest));
      continue;
    }
    const Vec scale = q_numbers(t.scale, p, col);
    store(scales + col, scale);
    if (t.least == QLeast::minimum) {
      store(leasts + col, q_numbers(t.scale, least, col));
    } else if (t.least == QLeast::zero) {
      const Ints zeros = t.low == 8 ? load_bytes(least + col) : field(load_bytes(least + col % 16), col < 16 ? 0 : 4, 15);
      store(leasts + col, negative(mul(scale, to_floats(zeros))));
    }
  }
}

// Scales that are fields of words, times the float16 that follow these.
static inline void q_expand_fields(const QTraits& t, const uint8_t* p, float* scales, float* leasts) {
  const int64_t words = q_field_words(t.scale);
  const uint8_t* halves = p + 4 * words * kQCols;
  for (int64_t col = 0; col < kQCols; col += kWidth) {
    const auto word = [&](int64_t w) { return codes(p + 4 * (w * kQCols + col)); };
    const auto put = [&](float* to, int part, Ints bits, Vec d, float off) {
      store(to + part * kQCols + col, mul(d, sub(to_floats(bits), set1(off))));
    };
    if (t.scale == QScale::fields_xs) {
      const Vec d = load_halves(halves + 2 * (kQCols + col));
      const Ints high = load_shorts(halves + 2 * col);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) put(scales, i, both(field(word(0), 4 * i, 15), field(high, 2 * i - 4, 48)), d, 32.0f);
      continue;
    }
    const Vec d = load_halves(halves + 2 * col);
    if (t.scale == QScale::fields_6k) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) store(scales + i * kQCols + col, mul(d, to_floats(signed_byte(word(i / 4), i % 4))));
    } else if (t.scale == QScale::fields_3k) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) put(scales, i, both(field(word(i / 8), 4 * (i % 8), 15), field(word(2), 2 * i - 4, 48)), d, 32.0f);
    } else {
      const Vec m = negative(load_halves(halves + 2 * (kQCols + col)));
      if (t.scale == QScale::fields_2k) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          put(scales, i, field(word(i / 8), 4 * (i % 8), 15), d, 0.0f);
          put(leasts, i, field(word(2 + i / 8), 4 * (i % 8), 15), m, 0.0f);
        }
      } else {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          put(scales, i, both(field(word(0), 4 * i, 15), field(word(2), 2 * i - 4, 48)), d, 0.0f);
          put(leasts, i, both(field(word(1), 4 * i, 15), field(word(2), 12 + 2 * i, 48)), m, 0.0f);
        }
      }
    }
  }
}

// Of `blocks` blocks from `block` on.
static inline void q_expand_scales(QType type, const uint8_t* block, int64_t blocks, int64_t group, QStretch& to) {
  const QTraits& t = kQTraits[(int)type];
  const int64_t bytes = q_block_bytes(type, group), code_bytes = q_code_bytes(type, group);
  for (int64_t b = 0; b < blocks; ++b, block += bytes) {
    float *scales = to.scales + b * kQCols, *leasts = to.leasts + b * kQCols;
    if (t.part) q_expand_fields(t, block + code_bytes, scales, leasts);
    else q_expand_scale(t, block + code_bytes, scales, leasts);
  }
}
static inline void q_expand_codes(QType type, const uint8_t* block, int64_t blocks, int64_t group, QStretch& to) {
  const QTraits& t = kQTraits[(int)type];
  const int64_t bytes = q_block_bytes(type, group), low_bytes = q_low_bytes(type, group);
  q_planes_of(t, [&](auto planes) {
    for (int64_t b = 0; b < blocks; ++b)
      planes.expand(block + b * bytes, block + b * bytes + low_bytes, q_table(t.book), group / 4, to.codes + b * group * kQCols);
  });
}
