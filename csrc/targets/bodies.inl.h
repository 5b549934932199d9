// Included inside a target's namespace, after its vectors: every body once, then the table.
namespace {
#include "simd/math.h"
//
#include "kernels/elementwise.inl.h"
#include "kernels/norm.inl.h"
#include "kernels/token.inl.h"
#include "kernels/optim.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/attention.inl.h"
}  // namespace

const KernelTable<float>* table() {
  static const KernelTable<float> kernels = {
#define X(name, Args) &name,
      MG_KERNELS(X)
#undef X
  };
  return &kernels;
}
