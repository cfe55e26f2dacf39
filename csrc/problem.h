// What the operators share: tensors described by sizes and strides, tables of positions, experts as matrices.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <tuple>
#include <vector>

#include "conv.h"

namespace condconv {

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
  int64_t positions() const { return height * width; }
  int64_t outputs() const { return out_height * out_width; }
  bool depthwise() const { return groups > 1 && depth() == 1 && columns() == 1; }
};

// The product of positive sizes, or the largest number there is where it is beyond that.
int64_t product(std::initializer_list<int64_t> sizes);

// Throws where x (B, I, H, W), coefficients (B, n) and a kernel (O, I/g, kh, kw) do not fit, or a product of sizes would
// not fit into its type.
Geometry geometry_of(const Tensor& x, const Tensor& coefficients, const Sizes& kernel, const Sizes& stride,
                     const Sizes& padding, const Sizes& dilation, int64_t groups);

Sizes kernel_of(const Tensor& experts);

Tensor as(const Tensor& t, ScalarType type);
Tensor as_float(const Tensor& t);
Tensor dense(const Tensor& t);
const float* floats(const Tensor& t);

// Whether the channels lie plane by plane. An output has the layout of its input.
bool is_planar(const Tensor& t);

// Of that type, channels_last and without gaps.
Tensor nhwc(const Tensor& t, ScalarType type);

// f32, in that layout and without gaps.
Tensor in_layout(const Tensor& t, bool planar);

// On the CPU. torch::stable::empty looks its operator up by name, which takes as long as a small convolution.
Tensor empty(std::initializer_list<int64_t> size, std::initializer_list<int64_t> stride, ScalarType type);
Tensor empty_map(ScalarType type, bool planar, int64_t b, int64_t c, int64_t h, int64_t w);

struct Map {  // a batch of images of f32 without gaps
  Tensor tensor;
  bool planar;

  Map(const Tensor& t, bool is_planar) : tensor(in_layout(t, is_planar)), planar(is_planar) {}

  Strides strides() const { return strides_of(planar, tensor.size(1), tensor.size(2) * tensor.size(3)); }
};

struct Rows {  // the tables of a Gemm
  std::vector<int32_t> source, target;
  std::vector<int64_t> band_end;
};

Rows forward_rows(const Geometry& g);

// For the gradient of x: which output position meets each input position at each tap.
Rows backward_rows(const Geometry& g);

Depthwise depthwise_of(const Geometry& g, Storage maps, const void* x, void* y, const float* coefficients, const Bank& bank);

// The experts (n, O, I/g, kh, kw) as matrices: of the convolution, or of the gradient of its input.
Experts experts_of(const Geometry& g, const float* data, bool of_input);

Bank bank_of(const void* packed, int64_t experts);

// Packs all of them: n·|W| numbers are written, whatever the batch.
Tensor pack(const Experts& e);

// Gradients of x, of the coefficients and of the experts; x's only where it is asked for.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& x, const Tensor& coefficients,
                                                   const Tensor& experts, Sizes stride, Sizes padding, Sizes dilation,
                                                   int64_t groups, bool needs_input);

}  // namespace condconv
