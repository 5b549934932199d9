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

// The only kernel that is the same on every machine: it moves bytes.
Plan plan_qpack(const QPackArgs& args);
void qpack(const QPackArgs& args, const Share& share);
Plan plan_qblocks(const QBlocksArgs& args);
void qblocks(const QBlocksArgs& args, const Share& share);
Plan plan_qunblocks(const QUnblocksArgs& args);
void qunblocks(const QUnblocksArgs& args, const Share& share);

}  // namespace mg
