// The kernels for AVX-512: 32 registers of 16 floats. Standard headers come first: nothing of them may be compiled for
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

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define LANES 16
#define MAX_COLUMNS 3
#define MAX_ROWS(registers) 8

namespace condconv {
namespace {
#include "vector_kernels.inc"
}
const Kernels avx512_kernels = {"avx512", pack, unpack, mix, to_rows, to_planes, gemm, gemm,
                               kGradientBlocks, gemm_gradient, depthwise, depthwise_gradient};
}  // namespace condconv
#endif
