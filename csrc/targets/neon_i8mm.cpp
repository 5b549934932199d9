// Quantized products on USMMLA and USDOT; every other kernel is neon's. As in neon.cpp, no STL header here.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <arm_neon.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/qgemm_grid.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

#define MG_BASE neon
namespace mg::neon_i8mm {
#include "simd/neon.h"
namespace {
#include "simd/ints.h"
#include "simd/dot_neon.h"
}  // namespace
#include "targets/quantized.inl.h"
}  // namespace mg::neon_i8mm
