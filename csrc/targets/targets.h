// The compiled targets: one table of kernels each. Declared only; dispatch.h chooses.
#pragma once
#include "kernels/list.h"

namespace mg {

#define MG_DECLARE_TARGET(name) \
  namespace name {              \
  const KernelTable<float>* table(); \
  }
MG_DECLARE_TARGET(scalar)
MG_DECLARE_TARGET(avx2)
MG_DECLARE_TARGET(avx512)
#undef MG_DECLARE_TARGET

}  // namespace mg
