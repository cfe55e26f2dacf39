// Problems shared among torch's threads, each part done by the kernels of this CPU.
#pragma once

#include "conv.h"

namespace condconv {

// The kernels of this CPU. Throws where it has none.
const Kernels& checked_kernels();

// Fills d.panels and d.column itself.
void run_depthwise(Depthwise d);

// `experts`, where there are any, take the place of the bank: they are packed as they are used.
void run_gemm(const Gemm& g, const Experts* experts);

// All of the experts, block by block: e.blocks() * e.block() numbers.
void run_pack(const Experts& e, float* packed);

}  // namespace condconv
