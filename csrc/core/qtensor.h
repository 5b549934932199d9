// Quantized weights: the table of their types, and how codes and scales lie in memory (core/qblock.h reads and writes them).
//
// A weight (N, K) is cut into panels of kQCols rows of it (columns of the product; the last panel is filled up with zeros)
// and a panel into blocks of `group` k (the last one filled up as well). A block is all that a kernel needs for 32 columns and
// one group, in the order in which it needs it: the codes, then the scales; a panel's blocks follow each other, so that a
// product is one stream of memory. A code is unsigned; its low bits and its high ones, if any, lie in planes of their own:
//   8 bits: quads of k: byte 128 j + 4 c + b is the code of column c and k = 4 j + b;
//   fewer: as many quads share a byte as fit, the first in its lowest bits: of 4 bits, the low half of byte 128 j + 4 c + b
//   belongs to k = 8 j + b, the high half to k = 8 j + 4 + b.
// Where a type has one scale for a whole column, the group is all of K. A group is one part (one scale) or, where scales are
// small integers times a float16, several: such scales are fields of words, word w of column c at 128 w + 4 c, and the float16
// of the columns follow them. Behind the blocks lie the tables of NF4, and behind these the order of K, if it is permuted.
#pragma once
#include <stdint.h>
#include <string.h>

#include "core/half.h"

namespace mg {

enum class QType : int32_t {
  int8_channel, int8, int4, int8_bf16, int4_bf16, affine8, affine4, affine8_bf16, affine4_bf16, zero8, zero4, zero8_bf16,
  zero4_bf16, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4, nf4, nf4_double
};
constexpr int kQTypes = 26;

// Scales of a column. Exponents are e: 2^(e - 128), half of what E8M0 says, as the values of MXFP4 are doubled here. Nested:
// code e of a table of 256, times the float32 of 256 scales, plus an offset. Fields are llama.cpp's.
enum class QScale : int32_t { half, single, brain, exponent, nested, fields_2k, fields_3k, fields_45k, fields_6k, fields_xs };
// What is added to scale * code: nothing, a number as wide as the scale, or -scale * zero with an integer zero.
enum class QLeast : int32_t { none, minimum, zero };
// What a code stands for: itself less the offset, or an entry of a table (integers of 8 bits less 128; NF4: floats).
enum class QBook : int32_t { none, iq4, mxfp4, floats };

struct QTraits {
  const char* name;
  int32_t low, high;    // bits of a code in either plane
  int32_t offset;       // value = scale * (code - offset) + least; of a table of integers 128
  QScale scale;
  QLeast least;
  QBook book;
  int32_t group, part;  // 0: the group may be chosen, and is one part
  int32_t step;         // groups are multiples of this
  bool channel;         // one scale a column; activations then have one a row
  bool direct;          // has tiles of its own that read the blocks
  bool narrow;          // numbers are rounded to the scale's type after the product and after the sum
};
constexpr QTraits kQTraits[kQTypes] = {
    {"int8_channel", 8, 0, 128, QScale::single, QLeast::none, QBook::none, 0, 0, 8, true, true, false},
    {"int8", 8, 0, 128, QScale::half, QLeast::none, QBook::none, 0, 0, 8, false, true, false},
    {"int4", 4, 0, 8, QScale::half, QLeast::none, QBook::none, 0, 0, 8, false, true, false},
    {"int8_bf16", 8, 0, 128, QScale::brain, QLeast::none, QBook::none, 0, 0, 8, false, false, false},
    {"int4_bf16", 4, 0, 8, QScale::brain, QLeast::none, QBook::none, 0, 0, 8, false, false, false},
    {"affine8", 8, 0, 0, QScale::half, QLeast::minimum, QBook::none, 0, 0, 8, false, false, true},
    {"affine4", 4, 0, 0, QScale::half, QLeast::minimum, QBook::none, 0, 0, 8, false, false, true},
    {"affine8_bf16", 8, 0, 0, QScale::brain, QLeast::minimum, QBook::none, 0, 0, 8, false, false, true},
    {"affine4_bf16", 4, 0, 0, QScale::brain, QLeast::minimum, QBook::none, 0, 0, 8, false, false, true},
    {"zero8", 8, 0, 0, QScale::half, QLeast::zero, QBook::none, 0, 0, 8, false, false, false},
    {"zero4", 4, 0, 0, QScale::half, QLeast::zero, QBook::none, 0, 0, 8, false, false, false},
    {"zero8_bf16", 8, 0, 0, QScale::brain, QLeast::zero, QBook::none, 0, 0, 8, false, false, false},
    {"zero4_bf16", 4, 0, 0, QScale::brain, QLeast::zero, QBook::none, 0, 0, 8, false, false, false},
    {"q4_1", 4, 0, 0, QScale::half, QLeast::minimum, QBook::none, 32, 0, 32, false, false, false},
    {"q5_0", 4, 1, 16, QScale::half, QLeast::none, QBook::none, 32, 0, 32, false, false, false},
    {"q5_1", 4, 1, 0, QScale::half, QLeast::minimum, QBook::none, 32, 0, 32, false, false, false},
    {"q2_k", 2, 0, 0, QScale::fields_2k, QLeast::minimum, QBook::none, 256, 16, 256, false, false, false},
    {"q3_k", 2, 1, 4, QScale::fields_3k, QLeast::none, QBook::none, 256, 16, 256, false, false, false},
    {"q4_k", 4, 0, 0, QScale::fields_45k, QLeast::minimum, QBook::none, 256, 32, 256, false, false, false},
    {"q5_k", 4, 1, 0, QScale::fields_45k, QLeast::minimum, QBook::none, 256, 32, 256, false, false, false},
    {"q6_k", 4, 2, 32, QScale::fields_6k, QLeast::none, QBook::none, 256, 16, 256, false, false, false},
    {"iq4_nl", 4, 0, 128, QScale::half, QLeast::none, QBook::iq4, 32, 0, 32, false, false, false},
    {"iq4_xs", 4, 0, 128, QScale::fields_xs, QLeast::none, QBook::iq4, 256, 32, 256, false, false, false},
    {"mxfp4", 4, 0, 128, QScale::exponent, QLeast::none, QBook::mxfp4, 32, 0, 32, false, false, false},
    {"nf4", 4, 0, 0, QScale::single, QLeast::none, QBook::floats, 0, 0, 8, false, false, false},
    {"nf4_double", 4, 0, 0, QScale::nested, QLeast::none, QBook::floats, 0, 0, 8, false, false, false},
};
constexpr int8_t kQIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kQMxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // doubled

constexpr int64_t kQCols = 32;
constexpr int64_t kQLeastGroup = 16, kQMostGroup = 256;
constexpr int64_t kQMostParts = kQMostGroup / kQLeastGroup;
constexpr int64_t kQNested = 256;  // scales that share a float32, counted along the rows, one row after the other

struct QWeight {
  const uint8_t* data;
  int64_t n, k, group;  // group: of K; K rounded up to `step` where channel
  QType type;
  const float* tables;   // NF4: 16 values; nested: 256 values, an offset, and the float32 of the scales. Else null
  const int32_t* order;  // (K) or null: place j of the codes is column order[j] of the weight
};

static inline int64_t q_panels(int64_t n) { return (n + kQCols - 1) / kQCols; }
static inline int64_t q_groups(int64_t k, int64_t group) { return group > 0 ? (k + group - 1) / group : 0; }
static inline int64_t q_low_bytes(QType type, int64_t group) { return kQCols * group * kQTraits[(int)type].low / 8; }
static inline int64_t q_code_bytes(QType type, int64_t group) {
  return q_low_bytes(type, group) + kQCols * group * kQTraits[(int)type].high / 8;
}
// Words of fields of a column; the float16 follow them.
static inline int64_t q_field_words(QScale scale) {
  switch (scale) {
    case QScale::fields_2k: case QScale::fields_6k: return 4;
    case QScale::fields_3k: case QScale::fields_45k: return 3;
    case QScale::fields_xs: return 1;  // and half a one
    default: return 0;
  }
}
static inline int64_t q_scale_bytes(QScale scale) {  // of a column
  switch (scale) {
    case QScale::half: case QScale::brain: return 2;
    case QScale::single: return 4;
    case QScale::exponent: case QScale::nested: return 1;
    case QScale::fields_xs: return 8;
    default: return 4 * q_field_words(scale) + 2;
  }
}
static inline int64_t q_block_bytes(QType type, int64_t group) {
  const QTraits& t = kQTraits[(int)type];
  const int64_t least = t.least == QLeast::minimum ? 16 : t.least == QLeast::zero ? t.low : 0;  // bits
  return q_code_bytes(type, group) + kQCols * q_scale_bytes(t.scale) + kQCols * least / 8;
}
// Of a block of GGUF files, which holds a row's group with as many bits; 0 where they have none like it.
static inline int64_t q_gguf_bytes(QType type) {
  const QTraits& t = kQTraits[(int)type];
  const bool plain = type == QType::int4 || type == QType::int8;
  return t.book == QBook::floats || !(plain || t.group) ? 0 : q_block_bytes(type, plain ? 32 : t.group) / kQCols;
}
static inline int64_t q_channel_group(int64_t k) { return (k + 7) / 8 * 8; }
static inline int64_t q_part(QType type, int64_t group) {
  return kQTraits[(int)type].part ? kQTraits[(int)type].part : group;
}
// float32 behind the blocks of a weight.
static inline int64_t q_table_floats(QType type, int64_t n, int64_t k, int64_t group) {
  const QTraits& t = kQTraits[(int)type];
  if (t.book != QBook::floats) return 0;
  return t.scale == QScale::nested ? 16 + 257 + (n * q_groups(k, group) + kQNested - 1) / kQNested : 16;
}

constexpr int64_t kQChunk = 256;  // codes of a column in hand at a time

// Below this, the largest of a group counts as zero: 127 / it must not overflow.
constexpr float kQTiny = 7.5231638452626401e-37f;  // 2^-120

// Activations: int8 codes with a scale for each row and group, made for tiles of rows. Tile t holds rows
// q_tile_row(t) .. q_tile_row(t + 1) - 1; of its `height` rows word [quad][row] is four codes, and scale and start (see
// QRowsArgs) are [group][row] and [start][row]. Heights differ by one at most: 7 rows are 4 + 3.
constexpr int64_t kQGroupRows = 6;     // 12 integer and 12 float sums of 16 lanes in registers
constexpr int64_t kQChannelRows = 12;  // 24 integer sums
static inline int64_t q_tile_rows(QType type) { return kQTraits[(int)type].channel ? kQChannelRows : kQGroupRows; }
// Starts of a group: one, or beside groups of several parts, which may be of 16 or of 32, sixteen and then eight.
constexpr int64_t kQSuperStarts = 24, kQSixteens = 16;
static inline int64_t q_starts(QType type) { return kQTraits[(int)type].part ? kQSuperStarts : 1; }
// What a start is of the sum of its codes; types without tiles of their own take the same activations.
static inline int32_t q_start_factor(QType type) { return kQTraits[(int)type].direct ? -kQTraits[(int)type].offset : -1; }
static inline int64_t q_tiles(int64_t m, int64_t most) { return (m + most - 1) / most; }
static inline int64_t q_tile_row(int64_t m, int64_t most, int64_t tile) {
  const int64_t tiles = q_tiles(m, most), rest = m % tiles;
  return tile * (m / tiles) + (tile < rest ? tile : rest);
}

}  // namespace mg
