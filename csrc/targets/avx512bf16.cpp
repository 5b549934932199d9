// bf16 on VDPBF16PS and VCVTNEPS2BF16: products, attention and what stores the most; every other kernel is avx512vnni's, whose
// VPDPBUSD it needs too. As in avx512.cpp, no STL header here.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/qgemm_grid.h"
#include "kernels/scan_tiles.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

namespace mg::avx512bf16 {
#include "simd/avx512.h"
#include "simd/avx512bf16.h"
namespace {
#include "simd/math.h"
#include "simd/ints.h"
#include "simd/dot_vnni.h"
//
#include "kernels/loops.inl.h"
#include "kernels/elementwise.inl.h"
#include "kernels/norm.inl.h"
#include "kernels/rope.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/gemm_joined.inl.h"
#include "kernels/grouped.inl.h"
#include "kernels/qgemm.inl.h"

void grouped_linear(const GroupedArgs<bf16>& args, const Share& share) { grouped_rows(args, share, &gemm_part<BfPairs>); }
void grouped_weight(const GroupedWeightArgs<bf16>& args, const Share& share) {
  grouped_columns(args, share, &gemm_part<BfPairs>);
}
//
#include "kernels/attention.inl.h"
#include "kernels/attention_pairs.inl.h"
#include "kernels/peak.inl.h"

struct PairChain {
  static constexpr int64_t kFlops = 4 * kWidth;
  static inline Vec first() { return {_mm512_castsi512_ps(_mm512_set1_epi32(0x3f803f80))}; }          // 1 and 1
  static inline Vec second() { return {_mm512_castsi512_ps(_mm512_set1_epi32((int)0xbf803f80u))}; }  // 1 and -1
  static inline Vec step(Vec sum, Vec a, Vec b) { return PairStep::step(a, b, sum); }
};
void peak_pairs(const PeakArgs<bf16>& args, const Share& share) { args.y[share.index] = peak_mean<PairChain>(); }
}  // namespace

const KernelTable<bf16>* table_bf16() {
  static const KernelTable<bf16> kernels = [] {
    KernelTable<bf16> all = *avx512vnni::table_bf16();
    all.gemm = &gemm_of<BfPairs>;
    all.gemm_joined = &gemm_joined_vectors<BfPairs>;
    all.grouped_linear = &grouped_linear;
    all.grouped_weight = &grouped_weight;
    all.act = &act<bf16>;
    all.act_backward = &act_backward<bf16>;
    all.qgemm = &qgemm<bf16>;
    all.glu = &glu<bf16>;
    all.glu_backward = &glu_backward<bf16>;
    all.norm = &norm<bf16>;
    all.norm_backward = &norm_backward<bf16>;
    all.rope = &rope<bf16>;
    all.axpy = &axpy<bf16>;
    all.dropout = &dropout<bf16>;
    all.cast = &cast;
    all.attention = &attention_of<AttentionPairs>;
    all.attention_backward = &attention_backward_of<AttentionPairs>;
    all.peak = &peak_pairs;
    return all;
  }();
  return &kernels;
}
}  // namespace mg::avx512bf16
