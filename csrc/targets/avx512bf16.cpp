// bf16 on VDPBF16PS and VCVTNEPS2BF16: matrix product, attention and what stores the most; every other kernel is avx512's. As in avx512.cpp, no STL header here.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

namespace mg::avx512bf16 {
#include "simd/avx512.h"
#include "simd/avx512bf16.h"
namespace {
#include "simd/math.h"
//
#include "kernels/elementwise.inl.h"
#include "kernels/norm.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/attention.inl.h"
#include "kernels/attention_pairs.inl.h"
}  // namespace

const KernelTable<bf16>* table_bf16() {
  static const KernelTable<bf16> kernels = [] {
    KernelTable<bf16> all = *avx512::table_bf16();
    all.gemm = &gemm_of<BfPairs>;
    all.act = &act<bf16>;
    all.act_backward = &act_backward<bf16>;
    all.glu = &glu<bf16>;
    all.glu_backward = &glu_backward<bf16>;
    all.norm = &norm<bf16>;
    all.norm_backward = &norm_backward<bf16>;
    all.axpy = &axpy<bf16>;
    all.dropout = &dropout<bf16>;
    all.cast = &cast;
    all.attention = &attention_of<AttentionPairs>;
    all.attention_backward = &attention_backward_of<AttentionPairs>;
    return all;
  }();
  return &kernels;
}
}  // namespace mg::avx512bf16
