// The kernels for AVX2: 16 registers of 8 floats. Standard headers come first: nothing of them may be compiled for
// a CPU that the program does not run on.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "conv.h"
#include "scratch.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx2,fma")
#define LANES 8
#define MAX_COLUMNS 1
#define MAX_ROWS(registers) (registers == 1 ? 8 : 6)

namespace condconv {
namespace {
#include "vector_kernels.inc"
}
const Kernels avx2_kernels = {"avx2", pack, unpack, mix, to_rows, to_planes, gemm, gemm,
                               kGradientBlocks, gemm_gradient, depthwise, depthwise_gradient};
}  // namespace condconv
#endif
