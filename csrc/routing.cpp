// `condconv::pooled_linear`: the logits of a router, the mean of an image over its positions times a matrix. Small enough
// for one thread and plain loops; one operator in the place of six.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <vector>

namespace condconv {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// x (B, C, H, W) f32 channels_last, weight (n, C) and bias (n) f32 → (B, n).
Tensor pooled_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  for (const Tensor* t : {&x, &weight, &bias}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float, "condconv::pooled_linear: x, weight and bias must be float32");
  }
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 2 && weight.size(1) == x.size(1) && bias.numel() == weight.size(0),
                  "condconv::pooled_linear: x (B, C, H, W), weight (n, C) and bias (n) must fit");
  STD_TORCH_CHECK(weight.is_contiguous() && bias.is_contiguous(), "condconv::pooled_linear: weights must be contiguous");
  const Tensor in = torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
  const int64_t batch = x.size(0), channels = x.size(1), positions = x.size(2) * x.size(3), n = weight.size(0);
  const std::array<int64_t, 2> size{batch, n};
  Tensor out = torch::stable::empty(size, ScalarType::Float, std::nullopt, x.device());
  const float* from = static_cast<const float*>(in.const_data_ptr());
  const float* w = static_cast<const float*>(weight.const_data_ptr());
  const float* b = static_cast<const float*>(bias.const_data_ptr());
  float* to = static_cast<float*>(out.mutable_data_ptr());
  std::vector<float> sum(channels);
  for (int64_t e = 0; e < batch; e++) {
    sum.assign(channels, 0.0f);
    for (int64_t p = 0; p < positions; p++, from += channels)
      for (int64_t c = 0; c < channels; c++) sum[c] += from[c];
    for (int64_t i = 0; i < n; i++) {
      float parts[8] = {};  // independent sums, which the compiler keeps in registers
      int64_t c = 0;
      for (; c + 8 <= channels; c += 8)
        for (int j = 0; j < 8; j++) parts[j] += sum[c + j] * w[i * channels + c + j];
      for (; c < channels; c++) parts[0] += sum[c] * w[i * channels + c];
      float total = 0;
      for (const float part : parts) total += part;
      to[e * n + i] = b[i] + total / static_cast<float>(positions);
    }
  }
  return out;
}

}  // namespace
}  // namespace condconv

STABLE_TORCH_LIBRARY_FRAGMENT(condconv, m) { m.def("pooled_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(condconv, CPU, m) { m.impl("pooled_linear", TORCH_BOX(&condconv::pooled_linear)); }
