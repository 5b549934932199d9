#include "kernels/gemm.inl.h"
#include "kernels/qgemm.inl.h"
#include "kernels/qrows.inl.h"
