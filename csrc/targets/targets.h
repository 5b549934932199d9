// The compiled targets: one table of kernels for each element type. Declared only; dispatch.h chooses.
#pragma once
#include "kernels/list.h"

namespace mg {

#define MG_DECLARE_TARGET(name) \
  namespace name {              \
  const KernelTable<float>* table(); \
  const KernelTable<bf16>* table_bf16(); \
  }
MG_DECLARE_TARGET(scalar)
MG_DECLARE_TARGET(avx2)
MG_DECLARE_TARGET(avx512)
MG_DECLARE_TARGET(avx512vnni)
MG_DECLARE_TARGET(avx512bf16)
MG_DECLARE_TARGET(avx512amx)
MG_DECLARE_TARGET(neon)
#undef MG_DECLARE_TARGET

}  // namespace mg
