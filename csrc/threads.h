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

// The gradients of the experts, with the strides of these, and of the coefficients (B, n); both are written. The sums do not
// depend on the number of threads.
void run_gemm_gradient(const GemmGradient& g, float* weight_grad, float* coefficient_grad);

void run_depthwise_gradient(const DepthwiseGradient& d, float* coefficient_grad);

// Maps of `channels` without gaps, turned from NHWC to NCHW or back.
void run_turn(const float* from, bool to_planar, int64_t batch, int64_t channels, int64_t positions, float* to);

// All of the experts, block by block: e.blocks() * e.block() numbers.
void run_pack(const Experts& e, float* packed);

}  // namespace condconv
