// Codes and scales of others into blocks: moving bytes, the same on every machine. A share is a panel.
#include "core/args.h"
#include "core/qblock.h"
#include "kernels/plan.h"

namespace mg {

void qpack(const QPackArgs& args, const Share& share) {
  const QWeight& w = args.w;
  const QTraits& t = kQTraits[(int)w.type];
  const int64_t groups = q_groups(w.k, w.group);
  uint8_t codes[kQChunk];
  for (int64_t r = share.index * kQCols; r < (share.index + 1) * kQCols; ++r) {
    const bool there = r < args.rows;
    for (int64_t g = 0; g < groups; ++g) {
      const QColumn to = q_column(w, args.data, args.first + r, g);
      const int64_t place = r * groups + g;
      if (t.scale == QScale::exponent || t.scale == QScale::nested) to.scales[to.c] = there ? args.bytes[place] : 0;
      else q_put_scale(w.type, to, there ? args.scales[place] : 0.0f);
      if (t.least == QLeast::minimum) q_put_number(t.scale, q_least_at(w.type, to) + 2 * to.c, there ? args.leasts[place] : 0.0f);
      else if (t.least == QLeast::zero) q_put_zero(w.type, to, there ? args.bytes[place] : 0);
      for (int64_t at = 0; at < w.group; at += kQChunk) {
        const int64_t now = w.group - at < kQChunk ? w.group - at : kQChunk, begin = g * w.group + at;
        const int64_t left = there && begin < w.k ? w.k - begin : 0, count = left < now ? left : now;
        if (count > 0) memcpy(codes, args.codes + r * w.k + begin, (size_t)count);
        memset(codes + count, q_blank(w.type), (size_t)(now - count));
        q_put_codes(w.type, to, codes, at, now);
      }
    }
  }
}

// -- blocks of GGUF: https://github.com/ggml-org/ggml, ggml-common.h ---------------------------------------------------------
namespace {

// Of each `span` bytes the lowest fields of `bits`, then the next ones; or, add, beside what is in `codes` from `shift` on.
void spread(const uint8_t* bytes, int64_t n, int bits, int64_t span, int shift, uint8_t* codes) {
  const uint8_t mask = (uint8_t)((1 << bits) - 1);
  for (int64_t i = 0; i < n; i += span) {
    for (int field = 0; field < 8; field += bits, codes += span) {
      if (shift == 0)
        for (int64_t j = 0; j < span; ++j) codes[j] = (uint8_t)(bytes[i + j] >> field & mask);
      else
        for (int64_t j = 0; j < span; ++j) codes[j] = (uint8_t)(codes[j] | (bytes[i + j] >> field & mask) << shift);
    }
  }
}
// Codes of 4 bits straight into their plane, two quads to a word: of each `span` bytes the low halves, then the high ones.
void put_halves(uint8_t* plane, const uint8_t* bytes, int64_t n, int64_t span) {
  constexpr uint32_t kLow = 0x0f0f0f0f;
  for (int64_t i = 0; i < n; i += span) {
    for (int64_t j = 0; j < span; j += 8) {
      uint32_t first, second;
      memcpy(&first, bytes + i + j, 4), memcpy(&second, bytes + i + j + 4, 4);
      const uint32_t low = (first & kLow) | (second & kLow) << 4, high = (first >> 4 & kLow) | (second & ~kLow);
      memcpy(plane + (2 * i + j) / 2 * kQCols, &low, 4);
      memcpy(plane + (2 * i + span + j) / 2 * kQCols, &high, 4);
    }
  }
}
// The bits of 4 bytes, one a code, above the four low ones.
void fifth(const uint8_t* bytes, uint8_t* codes) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  for (int i = 0; i < 4; ++i) {  // a byte's bits, each to a byte of a word
    const uint64_t bits = ((bytes[i] * kOnes & 0x8040201008040201) + 0x7f * kOnes) >> 7 & kOnes;
    uint64_t word;
    memcpy(&word, codes + 8 * i, 8);
    word |= bits << 4;
    memcpy(codes + 8 * i, &word, 8);
  }
}
uint16_t half_at(const uint8_t* p) { return (uint16_t)(p[0] | p[1] << 8); }

// 12 bytes: 8 scales and 8 minima of 6 bits, four of each whole, the others' halves behind and in their top bits.
void scales_and_minima(const uint8_t* p, uint8_t* scales, uint8_t* leasts) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = p[i] & 63, leasts[i] = p[4 + i] & 63;
    scales[4 + i] = (uint8_t)((p[8 + i] & 15) | p[i] >> 6 << 4);
    leasts[4 + i] = (uint8_t)(p[8 + i] >> 4 | p[4 + i] >> 6 << 4);
  }
}

bool finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

// A block of one scale: float16 d, maybe m, then codes. Whether these are finite. Planes of 4 and 8 bits are written, `codes` is
// what the others are made of.
bool simple_block(const QWeight& w, const QColumn& to, const uint8_t* p, uint8_t* codes) {
  const QTraits& t = kQTraits[(int)w.type];
  bool finite = true;
  if (t.scale == QScale::exponent) {
    to.scales[to.c] = *p++;
  } else {
    finite = finite_half(half_at(p));
    memcpy(to.scales + 2 * to.c, p, 2), p += 2;
    if (t.least == QLeast::minimum) {
      finite = finite && finite_half(half_at(p));
      memcpy(q_least_at(w.type, to) + 2 * to.c, p, 2), p += 2;
    }
  }
  if (t.low == 8) {
    for (int i = 0; i < 32; i += 4) {
      uint32_t word;
      memcpy(&word, p + i, 4);
      word ^= 0x80808080;
      memcpy(to.low + i * kQCols, &word, 4);
    }
  } else {
    put_halves(to.low, p + (t.high ? 4 : 0), 16, 16);
    if (t.high) memset(codes, 0, 32), fifth(p, codes);
  }
  return finite;
}

bool super_block(const QWeight& w, const QColumn& to, const uint8_t* p, uint8_t* codes) {
  uint8_t scales[16] = {}, leasts[16] = {};
  uint16_t d = 0, dmin = 0;
  switch (w.type) {
    case QType::q2_k:
      for (int i = 0; i < 16; ++i) scales[i] = p[i] & 15, leasts[i] = p[i] >> 4;
      spread(p + 16, 64, 2, 32, 0, codes);
      d = half_at(p + 80), dmin = half_at(p + 82);
      break;
    case QType::q3_k:
      spread(p + 32, 64, 2, 32, 0, codes);
      spread(p, 32, 1, 32, 2, codes);
      for (int i = 0; i < 16; ++i)
        scales[i] = (uint8_t)((p[96 + i % 8] >> (i < 8 ? 0 : 4) & 15) | (p[104 + i % 4] >> i / 4 * 2 & 3) << 4);
      d = half_at(p + 108);
      break;
    case QType::q4_k: case QType::q5_k:
      d = half_at(p), dmin = half_at(p + 2);
      scales_and_minima(p + 4, scales, leasts);
      put_halves(to.low, p + (w.type == QType::q4_k ? 16 : 48), 128, 32);
      if (w.type == QType::q5_k) memset(codes, 0, 256), spread(p + 16, 32, 1, 32, 4, codes);
      break;
    case QType::q6_k:
      put_halves(to.low, p, 128, 64);
      memset(codes, 0, 256), spread(p + 128, 64, 2, 32, 4, codes);
      memcpy(scales, p + 192, 16);
      d = half_at(p + 208);
      break;
    default:  // iq4_xs
      d = half_at(p);
      for (int i = 0; i < 8; ++i)
        scales[i] = (uint8_t)((p[4 + i / 2] >> i % 2 * 4 & 15) | (half_at(p + 2) >> 2 * i & 3) << 4);
      put_halves(to.low, p + 8, 128, 16);
  }
  q_put_fields(w.type, to, scales, leasts, d, dmin);
  return finite_half(d) && finite_half(dmin);
}

}  // namespace

void qblocks(const QBlocksArgs& args, const Share& share) {
  const QWeight& w = args.w;
  const int64_t groups = q_groups(w.k, w.group), bytes = q_gguf_bytes(w.type), row_bytes = groups * bytes;
  const QTraits& traits = kQTraits[(int)w.type];
  const bool super = traits.part != 0;
  uint8_t codes[kQMostGroup];
  int32_t finite = 1;
  static constexpr uint8_t kNothing[256] = {};  // zero scales
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < kQCols; ++c) {
      const int64_t r = share.index * kQCols + c;
      const QColumn to = q_column(w, args.data, args.first + r, g);
      const uint8_t* p = r < args.rows ? args.blocks + r * row_bytes + g * bytes : kNothing;
      finite &= super ? super_block(w, to, p, codes) : simple_block(w, to, p, codes);
      if (traits.low < 4) q_put_plane(to.low, traits.low, 0, codes, 0, w.group);
      if (traits.high) q_put_plane(to.high, traits.high, traits.low, codes, 0, w.group);
    }
  }
  args.finite[share.index] = finite;
}

// -- and back ----------------------------------------------------------------------------------------------------------------
namespace {

// The inverse of spread: fields of n bytes from codes' bits `shift` on.
void gather(const uint8_t* codes, int64_t n, int bits, int64_t span, int shift, uint8_t* bytes) {
  const uint8_t mask = (uint8_t)((1 << bits) - 1);
  memset(bytes, 0, (size_t)n);
  for (int64_t i = 0; i < n; i += span) {
    for (int field = 0; field < 8; field += bits, codes += span)
      for (int64_t j = 0; j < span; ++j) bytes[i + j] = (uint8_t)(bytes[i + j] | (codes[j] >> shift & mask) << field);
  }
}
void put_half(uint8_t* p, uint16_t half) { p[0] = (uint8_t)half, p[1] = (uint8_t)(half >> 8); }

void write_simple(const QWeight& w, const QColumn& from, const uint8_t* codes, uint8_t* p) {
  const QTraits& t = kQTraits[(int)w.type];
  if (t.scale == QScale::exponent) {
    *p++ = from.scales[from.c];
  } else {
    memcpy(p, from.scales + 2 * from.c, 2), p += 2;
    if (t.least == QLeast::minimum) memcpy(p, q_least_at(w.type, from) + 2 * from.c, 2), p += 2;
  }
  if (t.low == 8) {
    for (int i = 0; i < 32; ++i) p[i] = (uint8_t)(codes[i] ^ 128);
    return;
  }
  if (t.high) {
    memset(p, 0, 4);
    for (int i = 0; i < 32; ++i) p[i / 8] = (uint8_t)(p[i / 8] | (codes[i] >> 4 & 1) << i % 8);
    p += 4;
  }
  gather(codes, 16, 4, 16, 0, p);
}

void write_super(const QWeight& w, const QColumn& from, const uint8_t* codes, uint8_t* p) {
  uint8_t scales[16] = {}, leasts[16] = {};
  uint16_t d, dmin;
  q_get_fields(w.type, from, scales, leasts, &d, &dmin);
  switch (w.type) {
    case QType::q2_k:
      for (int i = 0; i < 16; ++i) p[i] = (uint8_t)(scales[i] | leasts[i] << 4);
      gather(codes, 64, 2, 32, 0, p + 16);
      put_half(p + 80, d), put_half(p + 82, dmin);
      break;
    case QType::q3_k:
      gather(codes, 32, 1, 32, 2, p);
      gather(codes, 64, 2, 32, 0, p + 32);
      memset(p + 96, 0, 12);
      for (int i = 0; i < 16; ++i) {
        p[96 + i % 8] = (uint8_t)(p[96 + i % 8] | (scales[i] & 15) << (i < 8 ? 0 : 4));
        p[104 + i % 4] = (uint8_t)(p[104 + i % 4] | scales[i] >> 4 << i / 4 * 2);
      }
      put_half(p + 108, d);
      break;
    case QType::q4_k: case QType::q5_k:
      put_half(p, d), put_half(p + 2, dmin);
      for (int i = 0; i < 4; ++i) {
        p[4 + i] = (uint8_t)(scales[i] | scales[4 + i] >> 4 << 6);
        p[8 + i] = (uint8_t)(leasts[i] | leasts[4 + i] >> 4 << 6);
        p[12 + i] = (uint8_t)((scales[4 + i] & 15) | (leasts[4 + i] & 15) << 4);
      }
      gather(codes, 128, 4, 32, 0, p + (w.type == QType::q4_k ? 16 : 48));
      if (w.type == QType::q5_k) gather(codes, 32, 1, 32, 4, p + 16);
      break;
    case QType::q6_k:
      gather(codes, 128, 4, 64, 0, p);
      gather(codes, 64, 2, 32, 4, p + 128);
      memcpy(p + 192, scales, 16);
      put_half(p + 208, d);
      break;
    default: {  // iq4_xs
      uint16_t high = 0;
      put_half(p, d), memset(p + 4, 0, 4);
      for (int i = 0; i < 8; ++i) {
        high = (uint16_t)(high | (scales[i] >> 4) << 2 * i);
        p[4 + i / 2] = (uint8_t)(p[4 + i / 2] | (scales[i] & 15) << i % 2 * 4);
      }
      put_half(p + 2, high);
      gather(codes, 128, 4, 16, 0, p + 8);
    }
  }
}

}  // namespace

void qunblocks(const QUnblocksArgs& args, const Share& share) {
  const QWeight& w = args.w;
  const int64_t groups = q_groups(w.k, w.group), bytes = q_gguf_bytes(w.type), row_bytes = groups * bytes;
  const int64_t begin = share.index * kQCols, end = begin + kQCols < args.rows ? begin + kQCols : args.rows;
  const bool super = kQTraits[(int)w.type].part != 0;
  uint8_t codes[kQMostGroup];
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = begin; r < end; ++r) {
      const QColumn from = q_column(w, const_cast<uint8_t*>(w.data), args.first + r, g);
      q_get_codes(w.type, from, codes, 0, w.group);
      if (super) write_super(w, from, codes, args.blocks + r * row_bytes + g * bytes);
      else write_simple(w, from, codes, args.blocks + r * row_bytes + g * bytes);
    }
  }
}

}  // namespace mg
