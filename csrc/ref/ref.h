// The same operations in plain double loops: the specification. Compiled without vectorisation or contraction.
#pragma once
#include "kernels/list.h"

namespace mg::ref {

#define X(name, Args) void name(const Args<double>&, const Share&);
MG_KERNELS(X)
#undef X

// An activation and its derivative.
double act_value(Act act, double x);
double act_slope(Act act, double x);

const KernelTable<double>& table();

}  // namespace mg::ref
