// Which kernels this CPU runs.
#pragma once

#include "conv.h"

namespace condconv {

// The best kernels of this CPU, or those that CONDCONV_ISA=avx2|avx512|none names and the CPU has; null for none.
const Kernels* kernels();

}  // namespace condconv
