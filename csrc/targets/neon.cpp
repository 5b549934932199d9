// Every kernel for neon, which every AArch64 processor has: no flags. No STL header, as in the other targets.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <arm_neon.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/qgemm_grid.h"
#include "kernels/scan_tiles.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

namespace mg::neon {
#include "simd/neon.h"
#include "targets/bodies.inl.h"
}  // namespace mg::neon
