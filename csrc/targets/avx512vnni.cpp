// Quantized products on VPDPBUSD; every other kernel is avx512's. As in avx512.cpp, no STL header here.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/qgemm_grid.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

namespace mg::avx512vnni {
#include "simd/avx512.h"
#include "simd/dot_avx512vnni.h"
namespace {
#include "simd/math.h"
//
#include "kernels/loops.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/qgemm.inl.h"
}  // namespace

const KernelTable<float>* table() {
  static const KernelTable<float> kernels = [] {
    KernelTable<float> all = *avx512::table();
    all.qgemm = &qgemm<float>;
    return all;
  }();
  return &kernels;
}
const KernelTable<bf16>* table_bf16() {
  static const KernelTable<bf16> kernels = [] {
    KernelTable<bf16> all = *avx512::table_bf16();
    all.qgemm = &qgemm<bf16>;
    return all;
  }();
  return &kernels;
}
}  // namespace mg::avx512vnni
