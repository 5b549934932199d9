// Included inside a target's namespace, after its vectors: the bodies of one part, MG_PART, and what puts them into the tables.
// Each part is compiled on its own, so that a change of one family of kernels does not compile the others again.
#define MG_TEXT_(a) #a
#define MG_TEXT(a) MG_TEXT_(a)
#define MG_PART_FILE(part) MG_TEXT(targets/parts/part.inl.h)

namespace {
#include "simd/math.h"
//
#include "kernels/loops.inl.h"
#include MG_PART_FILE(MG_PART)
}  // namespace

#define X(name, Args) full->name = &name, narrow->name = &name;
#define Y(name, Args) full->name = &name;
#define Z(name, Args) narrow->name = &name;
#define MG_FILL_(part) \
  void fill_##part(KernelTable<float>* full, KernelTable<bf16>* narrow) { MG_##part(X) MG_##part##_FULL(Y) MG_##part##_BF16(Z) }
#define MG_FILL(part) MG_FILL_(part)
MG_FILL(MG_PART)
#undef X
#undef Y
#undef Z
