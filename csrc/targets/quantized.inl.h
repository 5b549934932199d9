// Included inside a target's namespace, after its vectors and dot products: quantized products; every other kernel is that of
// the target MG_BASE.
namespace {
#include "simd/math.h"
//
#include "kernels/loops.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/qgemm.inl.h"
}  // namespace

const KernelTable<float>* table() {
  static const KernelTable<float> kernels = [] {
    KernelTable<float> all = *MG_BASE::table();
    all.qgemm = &qgemm<float>;
    return all;
  }();
  return &kernels;
}
const KernelTable<bf16>* table_bf16() {
  static const KernelTable<bf16> kernels = [] {
    KernelTable<bf16> all = *MG_BASE::table_bf16();
    all.qgemm = &qgemm<bf16>;
    return all;
  }();
  return &kernels;
}
