// Quantized products on VPDPBUSD of 256 bits (AVX-VNNI); every other kernel is avx2's. As in avx2.cpp, no STL header here.
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

#define MG_BASE avx2
namespace mg::avx2vnni {
#include "simd/avx2.h"
namespace {
#include "simd/ints.h"
#include "simd/dot_vnni.h"
}  // namespace
#include "targets/quantized.inl.h"
}  // namespace mg::avx2vnni
