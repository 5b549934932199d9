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
namespace {
#include "simd/math.h"
//
#include "kernels/loops.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/gemm_amx.inl.h"
}  // namespace

const KernelTable<bf16>* table_bf16() {
  static const KernelTable<bf16> kernels = [] {
    KernelTable<bf16> all = *avx512vnni::table_bf16();
    all.gemm = &gemm_amx;
    all.peak = &peak_amx;
    return all;
  }();
  return &kernels;
}
}  // namespace mg::avx512amx
