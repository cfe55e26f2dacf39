// Which kernels this CPU runs.
#pragma once

#include "conv.h"

namespace condconv {

// The best kernels of this CPU: AMX where maps are bf16, AVX-512, AVX2 or, with null, none. CONDCONV_ISA=avx512|avx2|none
// asks for lesser ones.
const Kernels* kernels();

}  // namespace condconv
