// Quantized weights: the table of their types, and how codes and scales lie in memory.
//
// A weight (N, K) is cut into panels of kQCols rows of it (columns of the product; the last panel is filled up with zeros)
// and a panel into blocks of `group` k (the last one filled up as well). A block is all that a kernel needs for 32 columns and
// one group, in the order in which it needs it: the codes, then the scales; a panel's blocks follow each other, so that a
// product is one stream of memory. Codes are unsigned, value = scale * (code - offset):
//   8 bits: quads of k: byte 128 j + 4 c + b is the code of column c and k = 4 j + b;
//   4 bits: pairs of quads: the low half of byte 128 j + 4 c + b belongs to k = 8 j + b, the high half to k = 8 j + 4 + b.
// Where a type has one scale for a whole column, the group is all of K.
#pragma once
#include <stdint.h>
#include <string.h>

#include "core/half.h"

namespace mg {

enum class QType : int32_t { int8_channel, int8, int4 };
constexpr int kQTypes = 3;

struct QTraits {
  const char* name;
  int32_t bits, offset;
  int32_t scale_bytes;  // 2: float16, 4: float32
  bool channel;         // one scale a column; activations then have one a row
  int32_t step;         // groups are multiples of this
};
constexpr QTraits kQTraits[kQTypes] = {
    {"int8_channel", 8, 128, 4, true, 8},
    {"int8", 8, 128, 2, false, 8},
    {"int4", 4, 8, 2, false, 8},
};

constexpr int64_t kQCols = 32;
constexpr int64_t kQLeastGroup = 16, kQMostGroup = 256;

struct QWeight {
  const uint8_t* data;
  int64_t n, k, group;  // group: of K; K rounded up to `step` where channel
  QType type;
};

static inline int64_t q_panels(int64_t n) { return (n + kQCols - 1) / kQCols; }
static inline int64_t q_groups(int64_t k, int64_t group) { return group > 0 ? (k + group - 1) / group : 0; }
static inline int64_t q_code_bytes(QType type, int64_t group) { return kQCols * group * kQTraits[(int)type].bits / 8; }
static inline int64_t q_block_bytes(QType type, int64_t group) {
  return q_code_bytes(type, group) + kQCols * kQTraits[(int)type].scale_bytes;
}
static inline int64_t q_channel_group(int64_t k) { return (k + 7) / 8 * 8; }

// One column (a row of the weight) of a block: its first byte of codes, and its scale.
struct QColumn {
  uint8_t *codes, *scale;
};
static inline QColumn q_column(const QWeight& w, uint8_t* data, int64_t row, int64_t group) {
  const int64_t block = row / kQCols * q_groups(w.k, w.group) + group, c = row % kQCols;
  uint8_t* b = data + block * q_block_bytes(w.type, w.group);
  return {b + 4 * c, b + q_code_bytes(w.type, w.group) + c * kQTraits[(int)w.type].scale_bytes};
}
static inline void q_put_scale(QType type, const QColumn& to, float scale) {
  if (kQTraits[(int)type].scale_bytes == 4) {
    memcpy(to.scale, &scale, 4);
  } else {
    const uint16_t half = half_of(scale);
    memcpy(to.scale, &half, 2);
  }
}
static inline float q_get_scale(QType type, const QColumn& from) {
  float scale;
  uint16_t half;
  if (kQTraits[(int)type].scale_bytes == 4) {
    memcpy(&scale, from.scale, 4);
    return scale;
  }
  memcpy(&half, from.scale, 2);
  return half_value(half);
}
// codes[0 .. n) of a column, from place `at` of its group on; `at` and n are multiples of 8.
static inline void q_put_codes(QType type, const QColumn& to, const uint8_t* codes, int64_t at, int64_t n) {
  if (kQTraits[(int)type].bits == 8) {
    for (int64_t i = 0; i < n; i += 4) memcpy(to.codes + (at + i) * kQCols, codes + i, 4);
    return;
  }
  for (int64_t i = 0; i < n; i += 8)
    for (int64_t j = 0; j < 4; ++j)
      to.codes[(at + i) / 2 * kQCols + j] = (uint8_t)(codes[i + j] | codes[i + 4 + j] << 4);
}
static inline void q_get_codes(QType type, const QColumn& from, uint8_t* codes, int64_t at, int64_t n) {
  if (kQTraits[(int)type].bits == 8) {
    for (int64_t i = 0; i < n; i += 4) memcpy(codes + i, from.codes + (at + i) * kQCols, 4);
    return;
  }
  for (int64_t i = 0; i < n; i += 8) {
    for (int64_t j = 0; j < 4; ++j) {
      const uint8_t both = from.codes[(at + i) / 2 * kQCols + j];
      codes[i + j] = both & 15, codes[i + 4 + j] = (uint8_t)(both >> 4);
    }
  }
}
constexpr int64_t kQChunk = 256;  // codes of a column in hand at a time

// Below this, the largest of a group counts as zero: 127 / it must not overflow.
constexpr float kQTiny = 7.5231638452626401e-37f;  // 2^-120

// Activations: int8 codes with a scale for each row and group, made for tiles of rows. Tile t holds rows
// q_tile_row(t) .. q_tile_row(t + 1) - 1; of its `height` rows word [quad][row] is four codes, and scale and start (see
// QRowsArgs) are [group][row]. Heights differ by one at most: 7 rows are 4 + 3.
constexpr int64_t kQGroupRows = 6;     // 12 integer and 12 float sums of 16 lanes in registers
constexpr int64_t kQChannelRows = 12;  // 24 integer sums
static inline int64_t q_tile_rows(QType type) { return kQTraits[(int)type].channel ? kQChannelRows : kQGroupRows; }
static inline int64_t q_tiles(int64_t m, int64_t most) { return (m + most - 1) / most; }
static inline int64_t q_tile_row(int64_t m, int64_t most, int64_t tile) {
  const int64_t tiles = q_tiles(m, most), rest = m % tiles;
  return tile * (m / tiles) + (tile < rest ? tile : rest);
}

}  // namespace mg
