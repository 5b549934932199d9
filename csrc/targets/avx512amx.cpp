// The bf16 matrix product on AMX tiles; every other kernel is avx512's. As in avx512.cpp, no STL header here.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

namespace mg::avx512amx {
#include "simd/avx512.h"
#include "simd/avx512bf16.h"
namespace {
#include "simd/math.h"
//
#define MG_GEMM_TILE_ROWS 16
#include "kernels/gemm.inl.h"

// Registers 0, 1: sums of 16 rows x 32 columns; 2: 16 rows of A with 32 k; 3, 4: 32 k of B with 16 columns each. All are
// whole: K is packed to a multiple of 32 with zeros, and rows that A lacks are multiplied for nothing.
struct AmxTiles : BfPairs {
  static constexpr bool kRowTiles = true, kVectors = false;
  static inline int64_t words(int64_t depth) { return (depth + 31) / 32 * 16; }
  static inline void begin() {
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; ++i) {
      config[16 + 2 * i] = 64;  // bytes of a row
      config[48 + i] = 16;      // rows
    }
    asm volatile("" ::: "memory");
    _tile_loadconfig(config);
  }
  static inline void end() { _tile_release(); }
  static void tile(const GemmTile& t, int64_t rows, bool) {
    alignas(64) float sums[16 * 32];
    const bool two = t.cols > 16;
    const int64_t left = two ? 16 : t.cols, right = two ? t.cols - 16 : 0;
    if (t.start) {
      for (int64_t r = 0; r < 16; ++r) {
        const float* row = t.start + r * t.start_step;
        store(sums + r * 32, r < rows ? load_n(row, left) : zero());
        store(sums + r * 32 + 16, r < rows && two ? load_n(row + 16, right) : zero());
      }
    }
    asm volatile("" ::: "memory");  // the tile instructions do not say what they read
    if (t.start) {
      _tile_loadd(0, sums, 128);
      _tile_loadd(1, sums + 16, 128);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
    const float *a = t.a, *b = t.b;
    for (int64_t k = 0; k < t.depth; k += 16, a += 256, b += 16 * t.b_step) {
      _tile_loadd(2, a, 64);
      _tile_loadd(3, b, t.b_step * 4);
      _tile_dpbf16ps(0, 2, 3);
      if (two) {
        _tile_loadd(4, b + 16, t.b_step * 4);
        _tile_dpbf16ps(1, 2, 4);
      }
    }
    _tile_stored(0, sums, 128);
    if (two) _tile_stored(1, sums + 16, 128);
    asm volatile("" ::: "memory");
    for (int64_t r = 0; r < rows; ++r) {
      store_n(t.out + r * t.out_step, load(sums + r * 32), left);
      if (two) store_n(t.out + r * t.out_step + 16, load(sums + r * 32 + 16), right);
    }
  }
};
}  // namespace

const KernelTable<bf16>* table_bf16() {
  static const KernelTable<bf16> kernels = [] {
    KernelTable<bf16> all = *avx512::table_bf16();
    all.gemm = &gemm_of<AmxTiles>;
    return all;
  }();
  return &kernels;
}
}  // namespace mg::avx512amx
