#include "problem.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "threads.h"

namespace condconv {
namespace {

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();

// Output positions of one dimension, or 0 where the input is smaller than the kernel. Padding, dilation and sizes are at most
// kLargest, so that no product overflows.
int64_t outputs(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace

int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(result, size, &result)) return std::numeric_limits<int64_t>::max();
  }
  return result;
}

Geometry geometry_of(const Tensor& x, const Tensor& coefficients, const Sizes& kernel, const Sizes& stride,
                     const Sizes& padding, const Sizes& dilation, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4, "condconv: x must be (B, I, H, W), it has ", x.dim(), " dimensions");
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(0) == x.size(0),
                  "condconv: coefficients must be (B, n) with the batch of x");
  STD_TORCH_CHECK(kernel.size() == 4 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                  "condconv: a kernel has 4 sizes; stride, padding and dilation have 2");
  Geometry g{x.size(0), x.size(1), x.size(2), x.size(3), kernel[0], groups, kernel[2], kernel[3], coefficients.size(1),
             stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1], 0, 0};
  STD_TORCH_CHECK(groups >= 1 && kernel[1] >= 0 && product({kernel[1], groups}) == g.in_channels && g.out_channels % groups == 0,
                  "condconv: x has ", g.in_channels, " channels; kernels of shape (O, I/g, kh, kw) with I/g = ", kernel[1],
                  ", O = ", kernel[0], " and ", groups, " groups do not fit");
  STD_TORCH_CHECK(std::min({stride[0], stride[1], dilation[0], dilation[1], g.height, g.width, g.experts}) >= 1 &&
                      *std::min_element(kernel.begin(), kernel.end()) >= 1 && std::min(padding[0], padding[1]) >= 0,
                  "condconv: sizes, stride and dilation must be positive, padding must not be negative");
  STD_TORCH_CHECK(std::max({padding[0], padding[1], dilation[0], dilation[1], g.height, g.width}) <= kLargest &&
                      *std::max_element(kernel.begin(), kernel.end()) <= kLargest && product({g.height, g.width}) <= kLargest,
                  "condconv: sizes, padding and dilation must be below 2^31");
  g.out_height = outputs(g.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  g.out_width = outputs(g.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  STD_TORCH_CHECK(g.out_height >= 1 && g.out_width >= 1, "condconv: the input is smaller than the kernel");
  const int64_t read = product({g.out_height, g.out_width, g.kernel_h, g.kernel_w});
  STD_TORCH_CHECK(read <= kLargest, "condconv: the kernel's positions times those of the output, ", g.kernel_h, " x ", g.kernel_w,
                  " times ", g.out_height, " x ", g.out_width, ", must be below 2^31");
  // What lies beyond the only output is never met.
  if (g.out_height == 1) g.stride_h = 1;
  if (g.out_width == 1) g.stride_w = 1;
  return g;
}

Sizes kernel_of(const Tensor& experts) {
  STD_TORCH_CHECK(experts.dim() == 5, "condconv: experts must be (n, O, I/g, kh, kw)");
  return {experts.size(1), experts.size(2), experts.size(3), experts.size(4)};
}

Tensor as(const Tensor& t, ScalarType type) { return t.scalar_type() == type ? t : torch::stable::to(t, type); }

Tensor as_float(const Tensor& t) { return as(t, ScalarType::Float); }

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

bool is_planar(const Tensor& t) { return t.size(1) > 1 && t.stride(1) != 1; }

static bool is_nhwc(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return (c == 1 || t.stride(1) == 1) && (w == 1 || t.stride(3) == c) && (h == 1 || t.stride(2) == w * c) &&
         (t.size(0) == 1 || t.stride(0) == h * w * c);
}

Tensor nhwc(const Tensor& t, ScalarType type) {
  const Tensor f = as(t, type);
  return is_nhwc(f) ? f : torch::stable::contiguous(f, MemoryFormat::ChannelsLast);
}

Tensor in_layout(const Tensor& t, bool planar) {
  const Tensor f = as_float(t);
  if (planar ? f.is_contiguous() : is_nhwc(f)) return f;
  const bool turns = planar ? is_nhwc(f) : f.is_contiguous();
  if (!turns || f.numel() == 0) return torch::stable::contiguous(f, planar ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
  Tensor out = empty_map(ScalarType::Float, planar, f.size(0), f.size(1), f.size(2), f.size(3));
  run_turn(floats(f), planar, f.size(0), f.size(1), f.size(2) * f.size(3), static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

Tensor empty(std::initializer_list<int64_t> size, std::initializer_list<int64_t> stride, ScalarType type) {
  const int32_t kind = type == ScalarType::Float ? aoti_torch_dtype_float32() : aoti_torch_dtype_bfloat16();
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.begin(), stride.begin(), kind,
                                                         aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Tensor empty_map(ScalarType type, bool planar, int64_t b, int64_t c, int64_t h, int64_t w) {
  if (planar) return empty({b, c, h, w}, {c * h * w, h * w, w, 1}, type);
  return empty({b, c, h, w}, {c * h * w, 1, w * c, c}, type);
}

namespace {

// Which of the kernel's rows meet the map at each of `count` rows of it: row(kernel's row, map's row) says. Ends a band of
// `length` positions a row wherever that changes.
template <class Meets>
void add_bands(const Geometry& g, int64_t count, int64_t length, const Meets& meets, Rows& rows) {
  for (int64_t r = 0; r < count; r++) {
    bool same = r > 0;
    for (int64_t kh = 0; kh < g.kernel_h && same; kh++) same = meets(kh, r) == meets(kh, r - 1);
    if (same) rows.band_end.back() += length;
    else rows.band_end.push_back((rows.band_end.empty() ? 0 : rows.band_end.back()) + length);
  }
}

}  // namespace

Rows forward_rows(const Geometry& g) {
  Rows rows;
  const int64_t count = g.outputs();
  rows.source.resize(g.taps() * count);
  rows.target.resize(count);
  for (int64_t r = 0; r < count; r++) rows.target[r] = static_cast<int32_t>(r);
  const auto height = [&](int64_t kh, int64_t oh) { return oh * g.stride_h - g.pad_h + kh * g.dilation_h; };
  for (int64_t tap = 0, at = 0; tap < g.taps(); tap++) {
    for (int64_t oh = 0; oh < g.out_height; oh++) {
      const int64_t h = height(tap / g.kernel_w, oh);
      for (int64_t ow = 0; ow < g.out_width; ow++, at++) {
        const int64_t w = ow * g.stride_w - g.pad_w + tap % g.kernel_w * g.dilation_w;
        const bool inside = h >= 0 && h < g.height && w >= 0 && w < g.width;
        rows.source[at] = inside ? static_cast<int32_t>(h * g.width + w) : -1;
      }
    }
  }
  add_bands(g, g.out_height, g.out_width, [&](int64_t kh, int64_t oh) { return height(kh, oh) >= 0 && height(kh, oh) < g.height; }, rows);
  return rows;
}

// Input positions of one phase of the stride stand together: they share the taps that meet nothing, and those are skipped.
Rows backward_rows(const Geometry& g) {
  Rows rows;
  rows.target.reserve(g.positions());
  for (int64_t first_h = 0; first_h < std::min(g.stride_h, g.height); first_h++) {
    for (int64_t first_w = 0; first_w < std::min(g.stride_w, g.width); first_w++) {
      int64_t count = 0, length = 0;
      for (int64_t h = first_h; h < g.height; h += g.stride_h, count++) {
        length = 0;
        for (int64_t w = first_w; w < g.width; w += g.stride_w, length++) {
          rows.target.push_back(static_cast<int32_t>(h * g.width + w));
        }
      }
      const auto meets = [&](int64_t kh, int64_t r) {
        const int64_t h = first_h + r * g.stride_h + g.pad_h - kh * g.dilation_h;
        return h >= 0 && h % g.stride_h == 0 && h / g.stride_h < g.out_height;
      };
      add_bands(g, count, length, meets, rows);
    }
  }
  rows.source.reserve(g.taps() * rows.target.size());
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

Experts experts_of(const Geometry& g, const float* data, bool of_input) {
  const int64_t taps = g.taps(), row = taps * g.depth(), all = g.out_channels * row;
  if (g.depthwise()) return {data, g.experts, 1, 1, taps, g.in_channels, all, 0, 1, taps};
  if (of_input) return {data, g.experts, g.groups, taps, g.columns(), g.depth(), all, g.columns() * row, row, taps};
  return {data, g.experts, g.groups, taps, g.depth(), g.columns(), all, g.columns() * row, taps, row};
}

Bank bank_of(const void* packed, int64_t experts) { return {packed, Storage::f32, nullptr, experts, 0}; }

Tensor pack(const Experts& e) {
  Tensor packed = empty({e.blocks() * e.block()}, {1}, ScalarType::Float);
  run_pack(e, static_cast<float*>(packed.mutable_data_ptr()));
  return packed;
}

}  // namespace condconv
