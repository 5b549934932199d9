// One column (a row of the weight) of a block: its codes, its scales, and what they stand for. Plain loops, shared by
// packing, reading rows and the reference; products read whole blocks (kernels/qexpand.inl.h).
#pragma once
#include "core/bf16.h"
#include "core/qtensor.h"

namespace mg {

struct QColumn {
  uint8_t *low, *high;  // first bytes of its codes
  uint8_t* scales;      // of the block
  int64_t c, row, group;
};
static inline QColumn q_column(const QWeight& w, uint8_t* data, int64_t row, int64_t group) {
  const int64_t block = row / kQCols * q_groups(w.k, w.group) + group, c = row % kQCols;
  uint8_t* b = data + block * q_block_bytes(w.type, w.group);
  return {b + 4 * c, b + q_low_bytes(w.type, w.group) + 4 * c, b + q_code_bytes(w.type, w.group), c, row, group};
}

// -- codes -----------------------------------------------------------------------------------------------------------------
// codes[0 .. n) of a column, from place `at` of its group on; both are multiples of the quads that share a byte.
static inline void q_put_plane(uint8_t* plane, int bits, int shift, const uint8_t* codes, int64_t at, int64_t n) {
  const int quads = 8 / bits;
  const uint32_t mask = bits == 8 ? ~0u : 0x01010101u * ((1u << bits) - 1);
  for (int64_t i = 0; i < n; i += 4 * quads) {
    uint32_t bytes = 0;
    for (int q = 0; q < quads; ++q) {
      uint32_t word;
      memcpy(&word, codes + i + 4 * q, 4);
      bytes |= (word >> shift & mask) << bits * q;
    }
    memcpy(plane + (at + i) / quads * kQCols, &bytes, 4);
  }
}
static inline void q_get_plane(const uint8_t* plane, int bits, int shift, uint8_t* codes, int64_t at, int64_t n) {
  const int quads = 8 / bits;
  const uint32_t mask = bits == 8 ? ~0u : 0x01010101u * ((1u << bits) - 1);
  for (int64_t i = 0; i < n; i += 4 * quads) {
    uint32_t bytes;
    memcpy(&bytes, plane + (at + i) / quads * kQCols, 4);
    for (int q = 0; q < quads; ++q) {
      uint32_t word = 0;
      if (shift) memcpy(&word, codes + i + 4 * q, 4);
      word |= (bytes >> bits * q & mask) << shift;
      memcpy(codes + i + 4 * q, &word, 4);
    }
  }
}
static inline void q_put_codes(QType type, const QColumn& to, const uint8_t* codes, int64_t at, int64_t n) {
  const QTraits& t = kQTraits[(int)type];
  q_put_plane(to.low, t.low, 0, codes, at, n);
  if (t.high) q_put_plane(to.high, t.high, t.low, codes, at, n);
}
static inline void q_get_codes(QType type, const QColumn& from, uint8_t* codes, int64_t at, int64_t n) {
  const QTraits& t = kQTraits[(int)type];
  q_get_plane(from.low, t.low, 0, codes, at, n);
  if (t.high) q_get_plane(from.high, t.high, t.low, codes, at, n);
}
// What each code stands for, to be scaled.
static inline void q_values(const QWeight& w, float* values) {
  const QTraits& t = kQTraits[(int)w.type];
  const int codes = 1 << (t.low + t.high);
  for (int i = 0; i < codes; ++i) {
    if (t.book == QBook::iq4) values[i] = (float)kQIq4[i];
    else if (t.book == QBook::mxfp4) values[i] = (float)kQMxfp4[i];
    else values[i] = t.book == QBook::floats ? w.tables[i] : (float)(i - t.offset);
  }
}
// The code whose value is 0, or the first: what fills up.
static inline uint8_t q_blank(QType type) {
  const QTraits& t = kQTraits[(int)type];
  return t.book == QBook::none ? (uint8_t)t.offset : 0;
}

// -- scales ----------------------------------------------------------------------------------------------------------------
static inline float q_get_half(const uint8_t* p) {
  uint16_t half;
  memcpy(&half, p, 2);
  return half_value(half);
}
static inline float q_get_brain(const uint8_t* p) {
  bf16 x;
  memcpy(&x, p, 2);
  return value_of(x);
}
static inline uint32_t q_word(const QColumn& at, int64_t word) {
  uint32_t x;
  memcpy(&x, at.scales + 4 * (word * kQCols + at.c), 4);
  return x;
}
static inline void q_put_number(QScale scale, uint8_t* p, float x) {
  if (scale == QScale::single) {
    memcpy(p, &x, 4);
  } else if (scale == QScale::half) {
    const uint16_t half = half_of(x);
    memcpy(p, &half, 2);
  } else {
    bf16 brain;
    assign(brain, x);
    memcpy(p, &brain, 2);
  }
}
static inline float q_get_number(QScale scale, const uint8_t* p) {
  float x;
  if (scale == QScale::half) return q_get_half(p);
  if (scale == QScale::brain) return q_get_brain(p);
  memcpy(&x, p, 4);
  return x;
}
// The one scale of a group that is a number.
static inline void q_put_scale(QType type, const QColumn& to, float x) {
  const QScale scale = kQTraits[(int)type].scale;
  q_put_number(scale, to.scales + to.c * q_scale_bytes(scale), x);
}
static inline float q_get_scale(QType type, const QColumn& from) {
  const QScale scale = kQTraits[(int)type].scale;
  return q_get_number(scale, from.scales + from.c * q_scale_bytes(scale));
}
static inline float q_exponent_value(uint8_t e) {  // 2^(e - 128); below 2 a denormal
  const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// Minima follow the scales; integer zeros of 4 bits are halves of bytes: column c's in byte c % 16.
static inline uint8_t* q_least_at(QType type, const QColumn& at) {
  return at.scales + kQCols * q_scale_bytes(kQTraits[(int)type].scale);
}
static inline void q_put_zero(QType type, const QColumn& to, uint8_t zero) {
  uint8_t* p = q_least_at(type, to);
  if (kQTraits[(int)type].low == 8) p[to.c] = zero;
  else if (to.c < 16) p[to.c] = (uint8_t)((p[to.c] & 0xf0) | zero);
  else p[to.c - 16] = (uint8_t)((p[to.c - 16] & 0x0f) | zero << 4);
}
static inline int32_t q_get_zero(QType type, const QColumn& from) {
  const uint8_t* p = q_least_at(type, from);
  return kQTraits[(int)type].low == 8 ? p[from.c] : from.c < 16 ? p[from.c] & 15 : p[from.c - 16] >> 4;
}

// Scale and what is added, of each part of a column's group, by the operations of the formats' own readers; their number.
// Always inlined, as it is called in targets: a copy of its own would be wide code outside their namespaces.
static inline __attribute__((always_inline)) int q_parts(const QWeight& w, const QColumn& at, float* scale, float* least) {
  const QTraits& t = kQTraits[(int)w.type];
  const int words = (int)q_field_words(t.scale);
  const uint8_t* halves = at.scales + 4 * words * kQCols;
  switch (t.scale) {
    case QScale::half: case QScale::single: case QScale::brain: {
      scale[0] = q_get_scale(w.type, at);
      if (t.least == QLeast::minimum) least[0] = q_get_number(t.scale, q_least_at(w.type, at) + 2 * at.c);
      else least[0] = t.least == QLeast::zero ? -(scale[0] * (float)q_get_zero(w.type, at)) : 0.0f;
      return 1;
    }
    case QScale::exponent: {
      scale[0] = q_exponent_value(at.scales[at.c]), least[0] = 0.0f;
      return 1;
    }
    case QScale::nested: {
      const int64_t place = at.row * q_groups(w.k, w.group) + at.group;
      const float* codes = w.tables + 16;
      scale[0] = codes[at.scales[at.c]] * codes[257 + place / kQNested] + codes[256], least[0] = 0.0f;
      return 1;
    }
    case QScale::fields_2k: {
      const float d = q_get_half(halves + 2 * at.c), m = q_get_half(halves + 2 * (kQCols + at.c));
      for (int i = 0; i < 16; ++i) {
        scale[i] = d * (float)(q_word(at, i / 8) >> 4 * (i % 8) & 15);
        least[i] = -(m * (float)(q_word(at, 2 + i / 8) >> 4 * (i % 8) & 15));
      }
      return 16;
    }
    case QScale::fields_3k: {
      const float d = q_get_half(halves + 2 * at.c);
      for (int i = 0; i < 16; ++i) {
        const uint32_t s = (q_word(at, i / 8) >> 4 * (i % 8) & 15) | (q_word(at, 2) >> 2 * i & 3) << 4;
        scale[i] = d * (float)((int32_t)s - 32), least[i] = 0.0f;
      }
      return 16;
    }
    case QScale::fields_45k: {
      const float d = q_get_half(halves + 2 * at.c), m = q_get_half(halves + 2 * (kQCols + at.c));
      const uint32_t high = q_word(at, 2);
      for (int i = 0; i < 8; ++i) {
        scale[i] = d * (float)((q_word(at, 0) >> 4 * i & 15) | (high >> 2 * i & 3) << 4);
        least[i] = -(m * (float)((q_word(at, 1) >> 4 * i & 15) | (high >> (16 + 2 * i) & 3) << 4));
      }
      return 8;
    }
    case QScale::fields_6k: {
      const float d = q_get_half(halves + 2 * at.c);
      for (int i = 0; i < 16; ++i) {
        scale[i] = d * (float)(int8_t)(q_word(at, i / 4) >> 8 * (i % 4) & 255), least[i] = 0.0f;
      }
      return 16;
    }
    case QScale::fields_xs: {
      uint16_t high;
      memcpy(&high, halves + 2 * at.c, 2);
      const float d = q_get_half(halves + 2 * (kQCols + at.c));
      for (int i = 0; i < 8; ++i) {
        const uint32_t s = (q_word(at, 0) >> 4 * i & 15) | (uint32_t)(high >> 2 * i & 3) << 4;
        scale[i] = d * (float)((int32_t)s - 32), least[i] = 0.0f;
      }
      return 8;
    }
  }
  return 0;
}

// The inverse for scales that are fields: integers as the format has them (without their offset), and float16.
static inline void q_put_fields(QType type, const QColumn& to, const uint8_t* scales, const uint8_t* leasts, uint16_t d,
                                uint16_t dmin) {
  const QScale kind = kQTraits[(int)type].scale;
  const int words = (int)q_field_words(kind);
  uint32_t word[4] = {0, 0, 0, 0};
  uint16_t halves[2] = {d, dmin};
  if (kind == QScale::fields_2k) {
    for (int i = 0; i < 16; ++i) {
      word[i / 8] |= (uint32_t)scales[i] << 4 * (i % 8);
      word[2 + i / 8] |= (uint32_t)leasts[i] << 4 * (i % 8);
    }
  } else if (kind == QScale::fields_3k) {
    for (int i = 0; i < 16; ++i) {
      word[i / 8] |= (uint32_t)(scales[i] & 15) << 4 * (i % 8);
      word[2] |= (uint32_t)(scales[i] >> 4) << 2 * i;
    }
  } else if (kind == QScale::fields_45k) {
    for (int i = 0; i < 8; ++i) {
      word[0] |= (uint32_t)(scales[i] & 15) << 4 * i;
      word[1] |= (uint32_t)(leasts[i] & 15) << 4 * i;
      word[2] |= (uint32_t)(scales[i] >> 4) << 2 * i | (uint32_t)(leasts[i] >> 4) << (16 + 2 * i);
    }
  } else if (kind == QScale::fields_6k) {
    for (int i = 0; i < 16; ++i) word[i / 4] |= (uint32_t)scales[i] << 8 * (i % 4);
  } else {
    for (int i = 0; i < 8; ++i) word[0] |= (uint32_t)(scales[i] & 15) << 4 * i;
    halves[0] = 0, halves[1] = d;
    for (int i = 0; i < 8; ++i) halves[0] = (uint16_t)(halves[0] | (scales[i] >> 4) << 2 * i);
  }
  for (int i = 0; i < words; ++i) memcpy(to.scales + 4 * (i * kQCols + to.c), &word[i], 4);
  const int count = kQTraits[(int)type].least == QLeast::minimum || kind == QScale::fields_xs ? 2 : 1;
  for (int i = 0; i < count; ++i) memcpy(to.scales + 4 * words * kQCols + 2 * (i * kQCols + to.c), &halves[i], 2);
}

static inline void q_get_fields(QType type, const QColumn& from, uint8_t* scales, uint8_t* leasts, uint16_t* d, uint16_t* dmin) {
  const QScale kind = kQTraits[(int)type].scale;
  const int words = (int)q_field_words(kind);
  uint32_t word[4] = {0, 0, 0, 0};
  uint16_t halves[2] = {0, 0};
  for (int i = 0; i < words; ++i) word[i] = q_word(from, i);
  const int count = kQTraits[(int)type].least == QLeast::minimum || kind == QScale::fields_xs ? 2 : 1;
  for (int i = 0; i < count; ++i) memcpy(&halves[i], from.scales + 4 * words * kQCols + 2 * (i * kQCols + from.c), 2);
  *d = halves[0], *dmin = halves[1];
  for (int i = 0; i < 16; ++i) {
    const uint32_t four = word[i / 8] >> 4 * (i % 8) & 15;
    if (kind == QScale::fields_2k) {
      scales[i] = (uint8_t)four, leasts[i] = (uint8_t)(word[2 + i / 8] >> 4 * (i % 8) & 15);
    } else if (kind == QScale::fields_3k) {
      scales[i] = (uint8_t)(four | (word[2] >> 2 * i & 3) << 4);
    } else if (kind == QScale::fields_6k) {
      scales[i] = (uint8_t)(word[i / 4] >> 8 * (i % 4) & 255);
    } else if (kind == QScale::fields_45k && i < 8) {
      scales[i] = (uint8_t)(four | (word[2] >> 2 * i & 3) << 4);
      leasts[i] = (uint8_t)((word[1] >> 4 * i & 15) | (word[2] >> (16 + 2 * i) & 3) << 4);
    } else if (kind == QScale::fields_xs && i < 8) {
      scales[i] = (uint8_t)(four | (uint32_t)(halves[0] >> 2 * i & 3) << 4);
    }
  }
  if (kind == QScale::fields_xs) *d = halves[1];
}

// A number as its type has it: narrow ones round where their format computes in the scale's own type.
static inline float q_number(const QTraits& t, float value, float scale, float least) {
  const float product = scale * value;
  if (!t.narrow) return t.least == QLeast::none ? product : product + least;
  const auto rounded = [&](float x) {
    if (t.scale == QScale::half) return half_value(half_of(x));
    bf16 y;
    assign(y, x);
    return value_of(y);
  };
  return rounded(rounded(product) + least);
}

}  // namespace mg
