#include "simd/ints.h"
#include "simd/dot.h"
//
#include "kernels/gemm.inl.h"
#include "kernels/qgemm.inl.h"
#include "kernels/qrows.inl.h"
#include "kernels/qfit.inl.h"
#include "kernels/kv_put.inl.h"
