// The operators `condconv::conv2d`, `conv2d_backward` and `conv2d_packed`: tensors to problems.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "conv.h"
#include "isa.h"
#include "threads.h"

namespace condconv {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

struct Geometry {
  int64_t batch, in_channels, height, width, out_channels, groups, kernel_h, kernel_w, experts;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, out_height, out_width;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t depth() const { return in_channels / groups; }
  int64_t columns() const { return out_channels / groups; }
  bool depthwise() const { return groups > 1 && depth() == 1 && columns() == 1; }
};

Geometry geometry_of(const Tensor& x, const Tensor& coefficients, const Sizes& kernel, const Sizes& stride,
                     const Sizes& padding, const Sizes& dilation, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4, "condconv: x must be (B, I, H, W), it has ", x.dim(), " dimensions");
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(0) == x.size(0),
                  "condconv: coefficients must be (B, n) with the batch of x");
  STD_TORCH_CHECK(kernel.size() == 4 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                  "condconv: a kernel has 4 sizes; stride, padding and dilation have 2");
  Geometry g{x.size(0), x.size(1), x.size(2), x.size(3), kernel[0], groups, kernel[2], kernel[3], coefficients.size(1),
             stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1], 0, 0};
  STD_TORCH_CHECK(groups >= 1 && kernel[1] * groups == g.in_channels && g.out_channels % groups == 0,
                  "condconv: x has ", g.in_channels, " channels; kernels of shape (O, I/g, kh, kw) with I/g = ", kernel[1],
                  ", O = ", kernel[0], " and ", groups, " groups do not fit");
  STD_TORCH_CHECK(std::min({stride[0], stride[1], dilation[0], dilation[1], g.height, g.width, g.experts}) >= 1 &&
                      *std::min_element(kernel.begin(), kernel.end()) >= 1 && std::min(padding[0], padding[1]) >= 0,
                  "condconv: sizes, stride and dilation must be positive, padding must not be negative");
  g.out_height = (g.height + 2 * g.pad_h - g.dilation_h * (g.kernel_h - 1) - 1) / g.stride_h + 1;
  g.out_width = (g.width + 2 * g.pad_w - g.dilation_w * (g.kernel_w - 1) - 1) / g.stride_w + 1;
  STD_TORCH_CHECK(g.height + 2 * g.pad_h >= g.dilation_h * (g.kernel_h - 1) + 1 &&
                      g.width + 2 * g.pad_w >= g.dilation_w * (g.kernel_w - 1) + 1,
                  "condconv: the input is smaller than the kernel");
  return g;
}

Tensor as(const Tensor& t, ScalarType type) { return t.scalar_type() == type ? t : torch::stable::to(t, type); }

Tensor as_float(const Tensor& t) { return as(t, ScalarType::Float); }

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

bool is_nhwc(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return (c == 1 || t.stride(1) == 1) && (w == 1 || t.stride(3) == c) && (h == 1 || t.stride(2) == w * c) &&
         (t.size(0) == 1 || t.stride(0) == h * w * c);
}

// Of that type, channels_last and without gaps.
Tensor nhwc(const Tensor& t, ScalarType type) {
  const Tensor f = as(t, type);
  return is_nhwc(f) ? f : torch::stable::contiguous(f, MemoryFormat::ChannelsLast);
}

Tensor empty_nhwc(const Tensor& like, ScalarType type, int64_t b, int64_t c, int64_t h, int64_t w) {
  const std::array<int64_t, 4> size{b, c, h, w};
  return torch::stable::empty(size, type, std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

struct Rows {  // the tables of a Gemm
  std::vector<int32_t> source, target;
};

Rows forward_rows(const Geometry& g) {
  Rows rows;
  const int64_t count = g.out_height * g.out_width;
  rows.source.resize(g.taps() * count);
  rows.target.resize(count);
  for (int64_t r = 0; r < count; r++) rows.target[r] = static_cast<int32_t>(r);
  for (int64_t tap = 0, at = 0; tap < g.taps(); tap++) {
    for (int64_t oh = 0; oh < g.out_height; oh++) {
      const int64_t h = oh * g.stride_h - g.pad_h + tap / g.kernel_w * g.dilation_h;
      for (int64_t ow = 0; ow < g.out_width; ow++, at++) {
        const int64_t w = ow * g.stride_w - g.pad_w + tap % g.kernel_w * g.dilation_w;
        const bool inside = h >= 0 && h < g.height && w >= 0 && w < g.width;
        rows.source[at] = inside ? static_cast<int32_t>(h * g.width + w) : -1;
      }
    }
  }
  return rows;
}

// For the gradient of x: which output position meets each input position at each tap. Input positions of one phase of the
// stride stand together: they share the taps that meet nothing, and those are skipped.
Rows backward_rows(const Geometry& g) {
  Rows rows;
  for (int64_t phase = 0; phase < g.stride_h * g.stride_w; phase++) {
    for (int64_t h = phase / g.stride_w; h < g.height; h += g.stride_h) {
      for (int64_t w = phase % g.stride_w; w < g.width; w += g.stride_w) {
        rows.target.push_back(static_cast<int32_t>(h * g.width + w));
      }
    }
  }
  for (int64_t tap = 0; tap < g.taps(); tap++) {
    for (const int32_t target : rows.target) {
      const int64_t h = target / g.width + g.pad_h - tap / g.kernel_w * g.dilation_h;
      const int64_t w = target % g.width + g.pad_w - tap % g.kernel_w * g.dilation_w;
      const bool on = h >= 0 && w >= 0 && h % g.stride_h == 0 && w % g.stride_w == 0;
      const int64_t oh = h / g.stride_h, ow = w / g.stride_w;
      rows.source.push_back(on && oh < g.out_height && ow < g.out_width ? static_cast<int32_t>(oh * g.out_width + ow) : -1);
    }
  }
  return rows;
}

Depthwise depthwise_of(const Geometry& g, Storage maps, const void* x, void* y, const float* coefficients,
                       const Bank& bank) {
  Depthwise d{};
  d.batch = g.batch, d.channels = g.in_channels, d.height = g.height, d.width = g.width;
  d.out_height = g.out_height, d.out_width = g.out_width, d.kernel_h = g.kernel_h, d.kernel_w = g.kernel_w;
  d.stride_h = g.stride_h, d.stride_w = g.stride_w, d.pad_h = g.pad_h, d.pad_w = g.pad_w;
  d.dilation_h = g.dilation_h, d.dilation_w = g.dilation_w;
  d.panels = d.spans();
  d.maps = maps, d.x = x, d.y = y, d.coefficients = coefficients, d.bank = bank;
  return d;
}

Tensor forward(const Geometry& g, const Tensor& x, const Tensor& coefficients, const Bank& bank, const Experts* experts,
               const float* bias, const float* shift, float threshold) {
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  const ScalarType type = half ? ScalarType::BFloat16 : ScalarType::Float;
  const Storage maps = half ? Storage::bf16 : Storage::f32;
  const Tensor in = nhwc(x, type), c = dense(as_float(coefficients));
  Tensor out = empty_nhwc(in, type, g.batch, g.out_channels, g.out_height, g.out_width);
  if (g.batch > 0) {
    void* y = out.mutable_data_ptr();
    if (g.depthwise()) {
      Depthwise d = depthwise_of(g, maps, in.const_data_ptr(), y, floats(c), bank);
      d.bias = bias, d.shift = shift, d.threshold = threshold;
      run_depthwise(d);
    } else {
      const Rows rows = forward_rows(g);
      run_gemm({g.batch, static_cast<int64_t>(rows.target.size()), g.taps(), g.depth(), g.columns(), g.groups,
                rows.source.data(), rows.target.data(), maps, in.const_data_ptr(), g.height * g.width * g.in_channels,
                g.in_channels, y,
                g.out_height * g.out_width * g.out_channels, g.out_channels, floats(c), bias, shift, threshold, bank},
               experts);
    }
  }
  return as(out, x.scalar_type());
}

// The experts (n, O, I/g, kh, kw) as matrices: of the convolution, or of the gradient of its input.
Experts experts_of(const Geometry& g, const float* data, bool of_input) {
  const int64_t taps = g.taps(), row = taps * g.depth(), all = g.out_channels * row;
  if (g.depthwise()) return {data, g.experts, 1, 1, taps, g.in_channels, all, 0, 1, taps};
  if (of_input) return {data, g.experts, g.groups, taps, g.columns(), g.depth(), all, g.columns() * row, row, taps};
  return {data, g.experts, g.groups, taps, g.depth(), g.columns(), all, g.columns() * row, taps, row};
}

Bank bank_of(const void* packed, int64_t experts) { return {packed, Storage::f32, nullptr, experts, 0}; }

// Packs all of them: n·|W| numbers are written, whatever the batch.
Tensor pack(const Experts& e, const Tensor& like) {
  const std::array<int64_t, 1> size{e.blocks() * e.block()};
  Tensor packed = torch::stable::empty(size, ScalarType::Float, std::nullopt, like.device());
  run_pack(e, static_cast<float*>(packed.mutable_data_ptr()));
  return packed;
}

Sizes kernel_of(const Tensor& experts) {
  STD_TORCH_CHECK(experts.dim() == 5, "condconv: experts must be (n, O, I/g, kh, kw)");
  return {experts.size(1), experts.size(2), experts.size(3), experts.size(4)};
}

Tensor conv2d(const Tensor& x, const Tensor& coefficients, const Tensor& experts, Sizes stride, Sizes padding,
              Sizes dilation, int64_t groups) {
  const Geometry g = geometry_of(x, coefficients, kernel_of(experts), stride, padding, dilation, groups);
  STD_TORCH_CHECK(experts.size(0) == g.experts, "condconv: ", g.experts, " coefficients for ", experts.size(0), " experts");
  const Tensor weight = dense(as_float(experts));
  const Experts matrices = experts_of(g, floats(weight), false);
  if (!g.depthwise()) return forward(g, x, coefficients, bank_of(nullptr, g.experts), &matrices, nullptr, nullptr, 0.0f);
  const Tensor packed = pack(matrices, weight);
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
  STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == blocks * kBlock * g.taps() * depth * g.experts,
                  "condconv: the packed experts have ", packed.numel(), " elements, not those of ", g.experts,
                  " kernels of that shape");
  std::optional<Tensor> s, b, added;
  if (scale) s = dense(as_float(*scale));
  if (bias) b = dense(as_float(*bias));
  if (shift) added = dense(as_float(*shift));
  STD_TORCH_CHECK(!s || s->numel() == g.experts * blocks * kBlock, "condconv: scale must be (n, blocks of 16 columns)");
  STD_TORCH_CHECK(!b || b->numel() == g.experts * g.out_channels, "condconv: bias must be (n, O)");
  STD_TORCH_CHECK(!added || added->numel() == g.out_channels, "condconv: shift must be (O,)");
  const Storage storage = type == ScalarType::Float      ? Storage::f32
                          : type == ScalarType::BFloat16 ? Storage::bf16
                                                         : Storage::int8;
  const Bank bank{packed.const_data_ptr(), storage, s ? floats(*s) : nullptr, g.experts, 0};
  return forward(g, x, coefficients, bank, nullptr, b ? floats(*b) : nullptr, added ? floats(*added) : nullptr,
                 static_cast<float>(threshold));
}

// The gradient of x where every channel has its own kernel: for stride 1 a convolution with the kernel turned around; for
// others too, after the gradient's positions are spread with zeros between them.
Tensor depthwise_input_gradient(const Geometry& g, const Tensor& grad, const float* coefficients, const Bank& bank) {
  Tensor out = empty_nhwc(grad, ScalarType::Float, g.batch, g.in_channels, g.height, g.width);
  Tensor spread = grad;
  Geometry back = g;
  back.height = (g.out_height - 1) * g.stride_h + 1, back.width = (g.out_width - 1) * g.stride_w + 1;
  if (g.stride_h > 1 || g.stride_w > 1) {
    spread = torch::stable::zero_(spread = empty_nhwc(grad, ScalarType::Float, g.batch, g.in_channels, back.height, back.width));
    float* to = static_cast<float*>(spread.mutable_data_ptr());
    const float* from = floats(grad);
    torch::stable::parallel_for(0, g.batch * g.out_height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        const int64_t b = r / g.out_height, h = r % g.out_height * g.stride_h;
        for (int64_t w = 0; w < g.out_width; w++) {
          std::copy_n(from + (r * g.out_width + w) * g.in_channels, g.in_channels,
                      to + ((b * back.height + h) * back.width + w * g.stride_w) * g.in_channels);
        }
      }
    });
  }
  back.stride_h = back.stride_w = 1;
  back.pad_h = g.dilation_h * (g.kernel_h - 1) - g.pad_h, back.pad_w = g.dilation_w * (g.kernel_w - 1) - g.pad_w;
  back.out_height = g.height, back.out_width = g.width;
  Depthwise d = depthwise_of(back, Storage::f32, spread.const_data_ptr(), out.mutable_data_ptr(), coefficients, bank);
  d.flipped = true;
  run_depthwise(d);
  return out;
}

Tensor input_gradient(const Geometry& g, const Tensor& grad, const float* coefficients, const Tensor& weight) {
  const Experts matrices = experts_of(g, floats(weight), true);
  if (g.depthwise()) {
    const Tensor packed = pack(matrices, weight);
    return depthwise_input_gradient(g, grad, coefficients, bank_of(packed.const_data_ptr(), g.experts));
  }
  Tensor out = empty_nhwc(grad, ScalarType::Float, g.batch, g.in_channels, g.height, g.width);
  const Rows rows = backward_rows(g);
  run_gemm({g.batch, g.height * g.width, g.taps(), g.columns(), g.depth(), g.groups, rows.source.data(), rows.target.data(),
            Storage::f32, grad.const_data_ptr(), g.out_height * g.out_width * g.out_channels, g.out_channels,
            out.mutable_data_ptr(), g.height * g.width * g.in_channels, g.in_channels, coefficients,
            nullptr, nullptr, 0.0f, bank_of(nullptr, g.experts)},
           &matrices);
  return out;
}

// Runs `unit(u, coefficient_grad)` for every u; each has its own sum, so that the total does not depend on the threads.
template <class F>
void summed(int64_t units, Tensor& coefficient_grad, const F& unit) {
  const int64_t size = coefficient_grad.numel();
  std::vector<float> parts(units * size, 0.0f);
  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) unit(u, parts.data() + u * size);
  });
  float* total = static_cast<float*>(coefficient_grad.mutable_data_ptr());
  for (int64_t j = 0; j < size; j++) {
    double sum = 0;
    for (int64_t u = 0; u < units; u++) sum += parts[u * size + j];
    total[j] = static_cast<float>(sum);
  }
}

void expert_gradient(const Geometry& g, const Tensor& grad, const Tensor& x, const float* coefficients,
                     const float* experts, Tensor& weight_grad, Tensor& coefficient_grad) {
  const Kernels& k = checked_kernels();
  float* to = static_cast<float*>(weight_grad.mutable_data_ptr());
  if (g.depthwise()) {
    const Bank bank = bank_of(nullptr, g.experts);
    const DepthwiseGradient d{depthwise_of(g, Storage::f32, x.const_data_ptr(), nullptr, coefficients, bank), floats(grad), experts, to};
    summed(d.shape.panels, coefficient_grad, [&](int64_t u, float* part) { k.depthwise_gradient(d, u, part); });
    return;
  }
  const Rows rows = forward_rows(g);
  const GemmGradient d{g.batch, static_cast<int64_t>(rows.target.size()), g.taps(), g.depth(), g.columns(), g.groups,
                       g.experts, rows.source.data(), floats(x), g.height * g.width * g.in_channels, g.in_channels,
                       floats(grad), g.out_height * g.out_width * g.out_channels, g.out_channels, coefficients, experts, to};
  summed(d.units(), coefficient_grad, [&](int64_t u, float* part) { k.gemm_gradient(d, u, part); });
}

// Gradients of x, of the coefficients and of the experts; x's only where it is asked for.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& x, const Tensor& coefficients,
                                                   const Tensor& experts, Sizes stride, Sizes padding, Sizes dilation,
                                                   int64_t groups, bool needs_input) {
  const Geometry g = geometry_of(x, coefficients, kernel_of(experts), stride, padding, dilation, groups);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == g.batch && grad.size(1) == g.out_channels &&
                      grad.size(2) == g.out_height && grad.size(3) == g.out_width,
                  "condconv: the gradient does not have the shape of the output");
  const Tensor dy = nhwc(grad, ScalarType::Float), in = nhwc(x, ScalarType::Float), c = dense(as_float(coefficients)), weight = dense(as_float(experts));
  Tensor dx = needs_input && g.batch > 0 ? input_gradient(g, dy, floats(c), weight)
                                         : empty_nhwc(in, ScalarType::Float, needs_input ? g.batch : 0, g.in_channels, g.height, g.width);
  Tensor dw = torch::stable::empty_like(weight), dc = torch::stable::empty_like(c);
  if (g.batch > 0) expert_gradient(g, dy, in, floats(c), floats(weight), dw, dc);
  else torch::stable::zero_(dw);
  return {as(dx, x.scalar_type()), as(dc, coefficients.scalar_type()), as(dw, experts.scalar_type())};
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
