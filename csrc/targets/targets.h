// The compiled targets: one table of kernels for each element type. Declared only; dispatch.h chooses.
#pragma once
#include "kernels/list.h"

namespace mg {

#define X(part) void fill_##part(KernelTable<float>* full, KernelTable<bf16>* narrow);
#define MG_DECLARE_TARGET(name, parts)   \
  namespace name {                       \
  parts                                  \
  const KernelTable<float>* table();     \
  const KernelTable<bf16>* table_bf16(); \
  }
MG_DECLARE_TARGET(scalar, MG_PARTS(X))
MG_DECLARE_TARGET(avx2, MG_PARTS(X))
MG_DECLARE_TARGET(avx2vnni, )
MG_DECLARE_TARGET(avx512, MG_PARTS(X))
MG_DECLARE_TARGET(avx512vnni, )
MG_DECLARE_TARGET(avx512bf16, )
MG_DECLARE_TARGET(avx512amx, )
MG_DECLARE_TARGET(neon, MG_PARTS(X))
MG_DECLARE_TARGET(neon_dotprod, )
MG_DECLARE_TARGET(neon_i8mm, )
#undef X
#undef MG_DECLARE_TARGET

}  // namespace mg
