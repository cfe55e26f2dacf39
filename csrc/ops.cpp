// The operators `condconv::conv2d`, `conv2d_backward` and `conv2d_packed`: tensors to problems.
#include <optional>
#include <string>

#include "isa.h"
#include "problem.h"
#include "threads.h"

namespace condconv {
namespace {

Tensor forward(const Geometry& g, const Tensor& x, const Tensor& coefficients, const Bank& bank, const Experts* experts,
               const float* bias, const float* shift, float threshold) {
  const bool half = x.scalar_type() == ScalarType::BFloat16, planar = is_planar(x);
  const Tensor c = dense(as_float(coefficients));
  const bool inside = planar && !half;  // bf16 maps are NHWC while they are convolved
  const Tensor in = half ? nhwc(x, ScalarType::BFloat16) : in_layout(x, inside);
  Tensor out = empty_map(half ? ScalarType::BFloat16 : ScalarType::Float, inside, g.batch, g.out_channels, g.out_height, g.out_width);
  if (g.batch > 0) {
    void* y = out.mutable_data_ptr();
    const Storage maps = half ? Storage::bf16 : Storage::f32;
    if (g.depthwise()) {
      Depthwise d = depthwise_of(g, maps, in.const_data_ptr(), y, floats(c), bank);
      d.planar = inside, d.bias = bias, d.shift = shift, d.threshold = threshold;
      run_depthwise(d);
    } else {
      const Rows rows = forward_rows(g);
      run_gemm({g.batch, g.outputs(), g.taps(), g.depth(), g.columns(), g.groups, rows.source.data(), rows.target.data(),
                rows.band_end.data(), static_cast<int64_t>(rows.band_end.size()), maps,
                in.const_data_ptr(), g.positions(), strides_of(inside, g.in_channels, g.positions()), y,
                strides_of(inside, g.out_channels, g.outputs()), floats(c), bias, shift, threshold, bank},
               experts);
    }
  }
  if (planar && !inside) out = torch::stable::contiguous(out);
  return as(out, x.scalar_type());
}

Tensor conv2d(const Tensor& x, const Tensor& coefficients, const Tensor& experts, Sizes stride, Sizes padding,
              Sizes dilation, int64_t groups) {
  const Geometry g = geometry_of(x, coefficients, kernel_of(experts), stride, padding, dilation, groups);
  STD_TORCH_CHECK(experts.size(0) == g.experts, "condconv: ", g.experts, " coefficients for ", experts.size(0), " experts");
  const Tensor weight = dense(as_float(experts));
  const Experts matrices = experts_of(g, floats(weight), false);
  if (!g.depthwise()) return forward(g, x, coefficients, bank_of(nullptr, g.experts), &matrices, nullptr, nullptr, 0.0f);
  const Tensor packed = pack(matrices);
  return forward(g, x, coefficients, bank_of(packed.const_data_ptr(), g.experts), nullptr, nullptr, nullptr, 0.0f);
}

Tensor conv2d_packed(const Tensor& x, const Tensor& coefficients, const Tensor& packed, std::optional<Tensor> scale,
                     std::optional<Tensor> bias, std::optional<Tensor> shift, Sizes kernel_shape, Sizes stride, Sizes padding, Sizes dilation,
                     int64_t groups, double threshold) {
  const Geometry g = geometry_of(x, coefficients, kernel_shape, stride, padding, dilation, groups);
  const ScalarType type = packed.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Char,
                  "condconv: packed experts are float32, bfloat16 or int8");
  STD_TORCH_CHECK(scale.has_value() == (type == ScalarType::Char), "condconv: int8 experts have a scale, others none");
  const int64_t whole = g.depthwise() ? 1 : g.groups, columns = g.out_channels / whole;
  const int64_t blocks = whole * ((columns + kBlock - 1) / kBlock), depth = g.depthwise() ? 1 : g.depth();
  STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == product({blocks, kBlock, g.kernel_h, g.kernel_w, depth, g.experts}),
                  "condconv: the packed experts have ", packed.numel(), " elements, not those of ", g.experts,
                  " kernels of that shape");
  std::optional<Tensor> s, b, added;
  if (scale) s = dense(as_float(*scale));
  if (bias) b = dense(as_float(*bias));
  if (shift) added = dense(as_float(*shift));
  STD_TORCH_CHECK(!s || s->numel() == product({g.experts, blocks, kBlock}), "condconv: scale must be (n, blocks of 16 columns)");
  STD_TORCH_CHECK(!b || b->numel() == product({g.experts, g.out_channels}), "condconv: bias must be (n, O)");
  STD_TORCH_CHECK(!added || added->numel() == g.out_channels, "condconv: shift must be (O,)");
  const Storage storage = type == ScalarType::Float      ? Storage::f32
                          : type == ScalarType::BFloat16 ? Storage::bf16
                                                         : Storage::int8;
  const Bank bank{packed.const_data_ptr(), storage, s ? floats(*s) : nullptr, g.experts, 0};
  return forward(g, x, coefficients, bank, nullptr, b ? floats(*b) : nullptr, added ? floats(*added) : nullptr,
                 static_cast<float>(threshold));
}

std::string instruction_set() { return kernels() ? kernels()->name : "none"; }

}  // namespace
}  // namespace condconv

STABLE_TORCH_LIBRARY(condconv, m) {
  m.def(
      "conv2d(Tensor x, Tensor coefficients, Tensor experts, int[] stride, int[] padding, int[] dilation, int groups) "
      "-> Tensor");
  m.def(
      "conv2d_backward(Tensor grad, Tensor x, Tensor coefficients, Tensor experts, int[] stride, int[] padding, "
      "int[] dilation, int groups, bool needs_input) -> (Tensor, Tensor, Tensor)");
  m.def(
      "conv2d_packed(Tensor x, Tensor coefficients, Tensor packed, Tensor? scale, Tensor? bias, Tensor? shift, "
      "int[] kernel_shape, int[] stride, int[] padding, int[] dilation, int groups, float threshold) -> Tensor");
  m.def("instruction_set() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(condconv, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&condconv::conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&condconv::conv2d_backward));
  m.impl("conv2d_packed", TORCH_BOX(&condconv::conv2d_packed));
}

STABLE_TORCH_LIBRARY_IMPL(condconv, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&condconv::instruction_set));
}
