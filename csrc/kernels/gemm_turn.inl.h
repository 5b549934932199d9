// Turning blocks of words in registers.

// rows[i] is vector i of a kWidth x kWidth block; afterwards vector i holds lane i of each. A template only so that the
// branches for other widths are not compiled.
template <class V> MG_INLINE void gemm_transpose_here(V* rows) {
  if constexpr (kWidth == 16) {
    V t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i].v = __builtin_shufflevector(rows[i].v, rows[i + 1].v, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
      t[i + 1].v =
          __builtin_shufflevector(rows[i].v, rows[i + 1].v, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    // Four rows of four: lane group g of rows[4 q + j] holds column 4 g + j of rows 4 q .. 4 q + 3.
#pragma GCC unroll 16
    for (int q = 0; q < 16; q += 4) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        rows[q + 2 * h].v = __builtin_shufflevector(t[q + h].v, t[q + 2 + h].v, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25,
                                                    12, 13, 28, 29);
        rows[q + 2 * h + 1].v = __builtin_shufflevector(t[q + h].v, t[q + 2 + h].v, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11,
                                                        26, 27, 14, 15, 30, 31);
      }
    }
    // A 4 x 4 transpose of the lane groups.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        t[j + 8 * h].v = __builtin_shufflevector(rows[j + 8 * h].v, rows[j + 8 * h + 4].v, 0, 1, 2, 3, 8, 9, 10, 11, 16,
                                                 17, 18, 19, 24, 25, 26, 27);
        t[j + 8 * h + 4].v = __builtin_shufflevector(rows[j + 8 * h].v, rows[j + 8 * h + 4].v, 4, 5, 6, 7, 12, 13, 14,
                                                     15, 20, 21, 22, 23, 28, 29, 30, 31);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        rows[j + 4 * h].v = __builtin_shufflevector(t[j + 4 * h].v, t[j + 4 * h + 8].v, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17,
                                                    18, 19, 24, 25, 26, 27);
        rows[j + 4 * h + 8].v = __builtin_shufflevector(t[j + 4 * h].v, t[j + 4 * h + 8].v, 4, 5, 6, 7, 12, 13, 14, 15,
                                                        20, 21, 22, 23, 28, 29, 30, 31);
      }
    }
  } else if constexpr (kWidth == 8) {
    V t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
      t[i].v = __builtin_shufflevector(rows[i].v, rows[i + 1].v, 0, 8, 1, 9, 4, 12, 5, 13);
      t[i + 1].v = __builtin_shufflevector(rows[i].v, rows[i + 1].v, 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 8
    for (int q = 0; q < 8; q += 4) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        rows[q + 2 * h].v = __builtin_shufflevector(t[q + h].v, t[q + 2 + h].v, 0, 1, 8, 9, 4, 5, 12, 13);
        rows[q + 2 * h + 1].v = __builtin_shufflevector(t[q + h].v, t[q + 2 + h].v, 2, 3, 10, 11, 6, 7, 14, 15);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const V low = rows[j], high = rows[j + 4];
      rows[j].v = __builtin_shufflevector(low.v, high.v, 0, 1, 2, 3, 8, 9, 10, 11);
      rows[j + 4].v = __builtin_shufflevector(low.v, high.v, 4, 5, 6, 7, 12, 13, 14, 15);
    }
  } else {
    V t[4];
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      t[i].v = __builtin_shufflevector(rows[i].v, rows[i + 1].v, 0, 4, 1, 5);
      t[i + 1].v = __builtin_shufflevector(rows[i].v, rows[i + 1].v, 2, 6, 3, 7);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      rows[2 * h].v = __builtin_shufflevector(t[h].v, t[2 + h].v, 0, 1, 4, 5);
      rows[2 * h + 1].v = __builtin_shufflevector(t[h].v, t[2 + h].v, 2, 3, 6, 7);
    }
  }
}

// As a call: smaller code, but vectors go through memory.
template <class V> static inline void gemm_transpose(V* rows) { gemm_transpose_here(rows); }

// The sums of `count` <= kWidth vectors, as one vector: they are turned, so that lanes are added in order.
static inline Vec lane_sums(const float* vectors, int64_t count) {
  Vec v[kWidth];
  for (int i = 0; i < kWidth; ++i) v[i] = i < count ? load(vectors + i * kWidth) : zero();
  gemm_transpose(v);
#pragma GCC unroll 4
  for (int step = kWidth / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) v[i] = add(v[i], v[i + step]);
  return v[0];
}

// The same in halves: words kWidth / 2 * half .. of kWidth rows, row r at src + r * step bytes; out[i] holds word i of every
// row. Two rows meet in a vector by loads, which saves the last stage of shuffles, and half of the registers are enough.
template <class V> static inline void gemm_turn_half(const char* src, int64_t step, V* out) {
  if constexpr (kWidth >= 8) {
    constexpr int kHalf = kWidth / 2;
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) out[i] = load_two((const float*)(src + i * step), (const float*)(src + (i + kHalf) * step));
#pragma GCC unroll 2
    for (int q = 0; q < kHalf; q += 4) {
      V t[4];
#pragma GCC unroll 2
      for (int i = 0; i < 4; i += 2) {
        if constexpr (kWidth == 16) {
          t[i].v = __builtin_shufflevector(out[q + i].v, out[q + i + 1].v, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
          t[i + 1].v = __builtin_shufflevector(out[q + i].v, out[q + i + 1].v, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
        } else {
          t[i].v = __builtin_shufflevector(out[q + i].v, out[q + i + 1].v, 0, 8, 1, 9, 4, 12, 5, 13);
          t[i + 1].v = __builtin_shufflevector(out[q + i].v, out[q + i + 1].v, 2, 10, 3, 11, 6, 14, 7, 15);
        }
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        if constexpr (kWidth == 16) {
          out[q + 2 * h].v = __builtin_shufflevector(t[h].v, t[2 + h].v, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
          out[q + 2 * h + 1].v = __builtin_shufflevector(t[h].v, t[2 + h].v, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        } else {
          out[q + 2 * h].v = __builtin_shufflevector(t[h].v, t[2 + h].v, 0, 1, 8, 9, 4, 5, 12, 13);
          out[q + 2 * h + 1].v = __builtin_shufflevector(t[h].v, t[2 + h].v, 2, 3, 10, 11, 6, 7, 14, 15);
        }
      }
    }
    if constexpr (kWidth == 16) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const V a = out[j], b = out[4 + j];
        out[j].v = __builtin_shufflevector(a.v, b.v, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
        out[4 + j].v = __builtin_shufflevector(a.v, b.v, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
      }
    }
  } else {
    float turned[kWidth / 2][kWidth];
    for (int r = 0; r < kWidth; ++r)
      for (int i = 0; i < kWidth / 2; ++i) memcpy(&turned[i][r], src + r * step + 4 * i, 4);
    for (int i = 0; i < kWidth / 2; ++i) out[i] = load(turned[i]);
  }
}
