#include "kernels/elementwise.inl.h"
#include "kernels/norm.inl.h"
#include "kernels/token.inl.h"
#include "kernels/optim.inl.h"
#include "kernels/peak.inl.h"
#include "kernels/read.inl.h"

static void peak(const PeakArgs<float>& args, const Share& share) { args.y[share.index] = peak_mean<FmaChain>(); }
static void peak(const PeakArgs<bf16>& args, const Share& share) { args.y[share.index] = peak_mean<FmaChain>(); }
