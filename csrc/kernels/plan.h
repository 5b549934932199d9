// How a kernel's work is cut: the number of shares and the scratch one share needs, from the arguments' shapes alone.
// Compiled once, at the baseline instruction set; the same for every target, so that bits never depend on it.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "kernels/list.h"

namespace mg {

struct Plan {
  int64_t shares;
  size_t scratch_bytes;  // per running share
};

#define X(name, Args) \
  Plan plan_##name(const Args<float>& args);  \
  Plan plan_##name(const Args<double>& args);
MG_KERNELS(X)
#undef X
#define X(name, Args) Plan plan_##name(const Args<bf16>& args);
MG_BF16_KERNELS(X)
#undef X

// Where share `share` of `shares` begins to read weights, of the kernels that read them once.
template <class A> struct HasWeights {
  static constexpr bool value = false;
};
#define MG_WEIGHTS(Args)                                                            \
  template <> struct HasWeights<Args> { static constexpr bool value = true; };      \
  const char* weights_begin(const Args& args, int64_t share, int64_t shares);
MG_WEIGHTS(GemmArgs<float>)
MG_WEIGHTS(GemmArgs<bf16>)
MG_WEIGHTS(JoinedGemmArgs<float>)
MG_WEIGHTS(JoinedGemmArgs<bf16>)
MG_WEIGHTS(QGemmArgs<float>)
MG_WEIGHTS(QGemmArgs<bf16>)
#undef MG_WEIGHTS

// The only kernel that is the same on every machine: it moves bytes.
Plan plan_qpack(const QPackArgs& args);
void qpack(const QPackArgs& args, const Share& share);
Plan plan_qblocks(const QBlocksArgs& args);
void qblocks(const QBlocksArgs& args, const Share& share);
Plan plan_qunblocks(const QUnblocksArgs& args);
void qunblocks(const QUnblocksArgs& args, const Share& share);

}  // namespace mg
