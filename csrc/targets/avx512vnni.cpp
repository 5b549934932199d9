// Quantized products on VPDPBUSD; every other kernel is avx512's. As in avx512.cpp, no STL header here.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "core/args.h"
#include "core/rng.h"
#include "kernels/list.h"
#include "kernels/qgemm_grid.h"
#include "kernels/tiles.h"
#include "targets/targets.h"

#define MG_BASE avx512
namespace mg::avx512vnni {
#include "simd/avx512.h"
namespace {
#include "simd/ints.h"
#include "simd/dot_vnni.h"
}  // namespace
#include "targets/quantized.inl.h"
}  // namespace mg::avx512vnni
