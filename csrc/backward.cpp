// The operator `condconv::conv2d_backward`.
#include <algorithm>
#include <tuple>

#include "problem.h"
#include "threads.h"

namespace condconv {
namespace {

// Gradients (B, C, OH, OW) NHWC with zeros between them, as far apart as the stride puts them.
Tensor spread(const Geometry& g, const Tensor& grad) {
  const int64_t height = (g.out_height - 1) * g.stride_h + 1, width = (g.out_width - 1) * g.stride_w + 1;
  Tensor out = empty_map(ScalarType::Float, false, g.batch, g.out_channels, height, width);
  torch::stable::zero_(out);
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const float* from = floats(grad);
  torch::stable::parallel_for(0, g.batch * g.out_height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t b = r / g.out_height, h = r % g.out_height * g.stride_h;
      for (int64_t w = 0; w < g.out_width; w++) {
        std::copy_n(from + (r * g.out_width + w) * g.out_channels, g.out_channels,
                    to + ((b * height + h) * width + w * g.stride_w) * g.out_channels);
      }
    }
  });
  return out;
}

// The gradient of x, in its layout, where every channel has its own kernel: a convolution with the kernel turned around.
Tensor depthwise_input_gradient(const Geometry& g, const Map& grad, const float* coefficients, const Tensor& weight, bool planar) {
  const bool spreads = g.stride_h > 1 || g.stride_w > 1, inside = planar && !spreads;
  const Tensor from = spreads ? spread(g, in_layout(grad.tensor, false)) : in_layout(grad.tensor, inside);
  Tensor out = empty_map(ScalarType::Float, inside, g.batch, g.in_channels, g.height, g.width);
  Geometry back = g;
  back.height = from.size(2), back.width = from.size(3);
  back.stride_h = back.stride_w = 1;
  back.pad_h = g.dilation_h * (g.kernel_h - 1) - g.pad_h, back.pad_w = g.dilation_w * (g.kernel_w - 1) - g.pad_w;
  back.out_height = g.height, back.out_width = g.width;
  const Tensor packed = pack(experts_of(g, floats(weight), true));
  const Bank bank = bank_of(packed.const_data_ptr(), g.experts);
  Depthwise d = depthwise_of(back, Storage::f32, from.const_data_ptr(), out.mutable_data_ptr(), coefficients, bank);
  d.flipped = true, d.planar = inside;
  run_depthwise(d);
  return in_layout(out, planar);
}

// In the layout of x.
Tensor input_gradient(const Geometry& g, const Map& grad, const float* coefficients, const Tensor& weight, bool planar) {
  if (g.depthwise()) return depthwise_input_gradient(g, grad, coefficients, weight, planar);
  const Experts matrices = experts_of(g, floats(weight), true);
  Tensor out = empty_map(ScalarType::Float, planar, g.batch, g.in_channels, g.height, g.width);
  const Rows rows = backward_rows(g);
  run_gemm({g.batch, g.positions(), g.taps(), g.columns(), g.depth(), g.groups, rows.source.data(), rows.target.data(),
            rows.band_end.data(), static_cast<int64_t>(rows.band_end.size()), Storage::f32, grad.tensor.const_data_ptr(), g.outputs(), grad.strides(),
            out.mutable_data_ptr(), strides_of(planar, g.in_channels, g.positions()), coefficients, nullptr, nullptr, 0.0f, bank_of(nullptr, g.experts)},
           &matrices);
  return out;
}

struct Segments {  // of a GemmGradient, and which are those of a tap and an output row
  std::vector<Segment> all;
  std::vector<int64_t> first;
};

// Which positions [begin, end) of a row of outputs meet an input inside of the map.
std::pair<int64_t, int64_t> inside(int64_t offset, int64_t stride, int64_t size, int64_t count) {
  const int64_t begin = offset >= 0 ? 0 : (-offset + stride - 1) / stride;
  const int64_t end = size - 1 < offset ? 0 : (size - 1 - offset) / stride + 1;
  return {begin, std::min(end, count)};
}

Segments segments_of(const Geometry& g) {
  Segments found;
  for (int64_t tap = 0; tap < g.taps(); tap++) {
    const int64_t down = tap / g.kernel_w * g.dilation_h - g.pad_h, across = tap % g.kernel_w * g.dilation_w - g.pad_w;
    const auto [begin, end] = inside(across, g.stride_w, g.width, g.out_width);
    for (int64_t oh = 0; oh < g.out_height; oh++) {
      found.first.push_back(static_cast<int64_t>(found.all.size()));
      const int64_t h = oh * g.stride_h + down;
      if (h < 0 || h >= g.height || begin >= end) continue;
      found.all.push_back({h * g.width + begin * g.stride_w + across, oh * g.out_width + begin, end - begin});
    }
    found.first.push_back(static_cast<int64_t>(found.all.size()));
  }
  return found;
}

void expert_gradient(const Geometry& g, const Map& grad, const Map& x, const float* coefficients, const float* experts,
                     Tensor& weight_grad, Tensor& coefficient_grad) {
  float *to = static_cast<float*>(weight_grad.mutable_data_ptr()), *to_coefficients = static_cast<float*>(coefficient_grad.mutable_data_ptr());
  if (g.depthwise()) {
    Depthwise shape = depthwise_of(g, Storage::f32, x.tensor.const_data_ptr(), nullptr, coefficients, bank_of(nullptr, g.experts));
    shape.planar = x.planar;
    run_depthwise_gradient({shape, floats(grad.tensor), experts, to}, to_coefficients);
    return;
  }
  const Segments segments = segments_of(g);
  run_gemm_gradient({g.batch, g.taps(), g.depth(), g.columns(), g.groups, g.out_height, g.out_width, g.stride_w,
                     segments.all.data(), segments.first.data(), floats(x.tensor), g.positions(), x.strides(),
                     floats(grad.tensor), grad.strides(), coefficients, experts_of(g, experts, false)},
                    to, to_coefficients);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& x, const Tensor& coefficients,
                                                   const Tensor& experts, Sizes stride, Sizes padding, Sizes dilation,
                                                   int64_t groups, bool needs_input) {
  const Geometry g = geometry_of(x, coefficients, kernel_of(experts), stride, padding, dilation, groups);
  STD_TORCH_CHECK(experts.size(0) == g.experts, "condconv: ", g.experts, " coefficients for ", experts.size(0), " experts");
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == g.batch && grad.size(1) == g.out_channels &&
                      grad.size(2) == g.out_height && grad.size(3) == g.out_width,
                  "condconv: the gradient does not have the shape of the output");
  const bool planar = is_planar(x);
  const Map in(x, planar), dy(grad, g.depthwise() ? planar : is_planar(grad));
  const Tensor c = dense(as_float(coefficients)), weight = dense(as_float(experts));
  Tensor dx = needs_input && g.batch > 0
                  ? input_gradient(g, dy, floats(c), weight, planar)
                  : empty_map(ScalarType::Float, planar, needs_input ? g.batch : 0, g.in_channels, g.height, g.width);
  Tensor dw = torch::stable::empty_like(weight), dc = torch::stable::empty_like(c);
  if (g.batch > 0) expert_gradient(g, dy, in, floats(c), floats(weight), dw, dc);
  else torch::stable::zero_(dw);
  return {as(dx, x.scalar_type()), as(dc, coefficients.scalar_type()), as(dw, experts.scalar_type())};
}

}  // namespace condconv
