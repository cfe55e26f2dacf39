// `condconv::pooled_linear`: the logits or the coefficients of a router, from the mean of an image over its positions times a
// matrix. Small enough for plain loops; one operator in the place of six.
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "problem.h"

namespace condconv {
namespace {

constexpr int64_t kWorthThread = 64 * 1024;  // numbers to add up that are worth waking another thread

// Independent sums, which the compiler keeps in registers.
struct Sums {
  float parts[8] = {};

  float total() const {
    float sum = 0;
    for (const float part : parts) sum += part;
    return sum;
  }
};

float sum_of(const float* from, int64_t count) {
  Sums sums;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; j++) sums.parts[j] += from[i + j];
  for (; i < count; i++) sums.parts[0] += from[i];
  return sums.total();
}

float product_of(const float* a, const float* b, int64_t count) {
  Sums sums;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; j++) sums.parts[j] += a[i + j] * b[i + j];
  for (; i < count; i++) sums.parts[0] += a[i] * b[i];
  return sums.total();
}

// The sums over the positions of an image, whose channels lie plane by plane or are neighbours.
void pool(const float* image, bool planar, int64_t channels, int64_t positions, std::vector<float>& sum) {
  if (planar) {
    for (int64_t c = 0; c < channels; c++) sum[c] = sum_of(image + c * positions, positions);
    return;
  }
  std::fill(sum.begin(), sum.end(), 0.0f);
  for (int64_t p = 0; p < positions; p++, image += channels)
    for (int64_t c = 0; c < channels; c++) sum[c] += image[c];
}

enum Gate : int64_t { kNone, kSigmoid, kSoftmax };

// Coefficients in the place of n logits.
void apply(int64_t gate, float divisor, float* z, int64_t n) {
  if (gate == kSigmoid) {
    for (int64_t i = 0; i < n; i++) z[i] = 1.0f / (1.0f + std::exp(-z[i]));
  } else if (gate == kSoftmax && n > 0) {
    const float largest = *std::max_element(z, z + n) / divisor;
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += z[i] = std::exp(z[i] / divisor - largest);
    for (int64_t i = 0; i < n; i++) z[i] /= sum;
  }
}

// x (B, C, H, W) f32, weight (n, C) and bias (n) f32 → (B, n): logits, or what a gate makes of logits over a divisor.
Tensor pooled_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t gate, std::optional<Tensor> divisor) {
  for (const Tensor* t : {&x, &weight, &bias}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float, "condconv::pooled_linear: x, weight and bias must be float32");
  }
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 2 && weight.size(1) == x.size(1) && bias.numel() == weight.size(0),
                  "condconv::pooled_linear: x (B, C, H, W), weight (n, C) and bias (n) must fit");
  STD_TORCH_CHECK(gate >= kNone && gate <= kSoftmax, "condconv::pooled_linear: gate must be 0 (none), 1 (sigmoid) or 2 (softmax)");
  STD_TORCH_CHECK(!divisor || (divisor->numel() == 1 && divisor->is_cpu()), "condconv::pooled_linear: divisor must be one number");
  const float by = divisor ? *floats(as_float(*divisor)) : 1.0f;
  const bool planar = is_planar(x);
  const Tensor in = in_layout(x, planar), matrix = dense(weight), added = dense(bias);
  const int64_t batch = x.size(0), channels = x.size(1), positions = product({x.size(2), x.size(3)}), n = weight.size(0);
  Tensor out = empty({batch, n}, {n, 1}, ScalarType::Float);
  const float *from = floats(in), *w = floats(matrix), *b = floats(added);
  float* to = static_cast<float*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, kWorthThread / std::max<int64_t>(1, product({channels, positions})) + 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(channels);
    for (int64_t e = begin; e < end; e++) {
      pool(from + e * channels * positions, planar, channels, positions, sum);
      for (int64_t i = 0; i < n; i++) {
        to[e * n + i] = b[i] + product_of(sum.data(), w + i * channels, channels) / static_cast<float>(positions);
      }
      apply(gate, by, to + e * n, n);
    }
  });
  return out;
}

}  // namespace
}  // namespace condconv

STABLE_TORCH_LIBRARY_FRAGMENT(condconv, m) {
  m.def("pooled_linear(Tensor x, Tensor weight, Tensor bias, int gate=0, Tensor? divisor=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(condconv, CPU, m) { m.impl("pooled_linear", TORCH_BOX(&condconv::pooled_linear)); }
