// The kernels of one part (MG_PART) for avx512. Only this file gets the instruction-set flags, and it includes no STL header: an inline library
// function compiled for a wide target could otherwise be the copy that the linker keeps for the whole program.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/qgemm_grid.h"
#include "kernels/scan_tiles.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

namespace mg::avx512 {
#include "simd/avx512.h"
#include "targets/bodies.inl.h"
}  // namespace mg::avx512
