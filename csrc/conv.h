// What the operators hand to the kernels: problems described by plain numbers and pointers, no torch.
//
// B batch, n experts, O/I output/input channels, g groups, kh kw kernel. All maps are NHWC ("channels_last").
#pragma once

#include <cstddef>
#include <cstdint>

namespace condconv {

enum class Storage { f32, bf16, int8 };  // of a bank; maps are f32 or bf16

constexpr int64_t kLine = 64;  // bytes of a line of the caches

constexpr int64_t size_of(Storage s) { return s == Storage::f32 ? 4 : s == Storage::bf16 ? 2 : 1; }

constexpr int64_t kBlock = 16;  // columns of one block of a packed bank
constexpr int64_t kChunk = 8;   // rows of one chunk of a packed bank
constexpr int64_t kSpan = 32;  // channels of a depthwise convolution that are convolved together
constexpr int64_t kMixedExamples = 8;  // whose depthwise kernels are mixed at once

struct Strides {  // of a batch of maps, in elements
  int64_t example, position, channel;
};

// Of maps without gaps, plane by plane or with the channels as neighbours.
constexpr Strides strides_of(bool planar, int64_t channels, int64_t positions) {
  return {channels * positions, planar ? 1 : channels, planar ? positions : 1};
}

// n expert matrices (K rows, N columns) for each group, in the layout of condconv/packing.py.
struct Bank {
  const void* data;
  Storage storage;
  const float* scale;  // (n, groups · blocks · 16) or null
  int64_t experts;
  int64_t first_block;  // which one `data` begins with
  bool mixed = false;   // its one expert, of f32, is what each example's kernel is
};

// The same matrices as a bank's parameters hold them, with strides in elements; row k is (tap, channel), and the taps of a
// channel follow one another.
struct Experts {
  const float* data;
  int64_t count, groups, taps, depth, columns;
  int64_t expert_stride, group_stride, depth_stride, column_stride;

  int64_t blocks() const { return groups * ((columns + kBlock - 1) / kBlock); }
  int64_t block() const { return kBlock * taps * depth * count; }  // numbers of a packed block
};

// y[b][target[r]] = shift + bias_b + Σ_tap x[b][source[tap][r]] · (Σ_i c[b][i] W_i)[tap], for every row r; source -1 reads zeros.
struct Gemm {
  int64_t batch, rows, taps, depth, columns, groups;
  const int32_t* source;  // (taps, rows), positions in one example of x
  const int32_t* target;  // (rows), positions in one example of y
  const int64_t* band_end;  // rows up to each of these skip the same taps, which read zeros
  int64_t bands;
  Storage maps;  // of x and y
  const void* x;
  int64_t positions;  // of one example
  Strides x_strides;  // a group takes `depth` channels
  void* y;
  Strides y_strides;          // a group takes `columns` channels
  const float* coefficients;  // (B, n)
  const float* bias;          // (n, groups · columns) or null
  const float* shift;         // (groups · columns) or null: added to every example as it is
  float threshold;
  Bank bank;

  int64_t blocks() const { return (columns + kBlock - 1) / kBlock; }
};

struct Segment {  // neighbouring output positions of one row, and the positions of x that they meet at one tap
  int64_t x, grad, count;
};

// Gradient of the experts and the coefficients of a Gemm.
struct GemmGradient {
  int64_t batch, taps, depth, columns, groups;
  int64_t out_rows, row_positions, x_step;  // rows of the output and their length; between the inputs of neighbours
  const Segment* segments;
  const int64_t* first_segment;  // (taps, out_rows + 1): which are those of a row
  const float* x;
  int64_t positions;  // of one example
  Strides x_strides;
  const float* grad;
  Strides grad_strides;
  const float* coefficients;  // (B, n)
  Experts experts;

  int64_t blocks() const { return (columns + kBlock - 1) / kBlock; }
};

// One kernel for each channel and example: the bank has one group, C columns and K = taps rows.
struct Depthwise {
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  Storage maps;
  const void* x;
  void* y;
  bool planar;  // both maps are NCHW, of f32: they are turned panel by panel
  const float* coefficients;
  const float* bias;
  const float* shift;
  float threshold;
  int64_t panels;  // parts of the channels, in spans of 32, whose kernels are mixed together
  bool flipped;   // read the taps from last to first: the gradient of the input of a convolution of stride 1
  const int64_t* column;  // (kernel_w, out_width): where in a row, in bytes, a tap of an output finds its input; -1 if outside
  Bank bank;

  int64_t spans() const { return (channels + kSpan - 1) / kSpan; }
  // Between neighbouring positions while they are convolved, in elements: those of the widest panel, or of the maps.
  int64_t step() const { return planar ? (spans() + panels - 1) / panels * kSpan : channels; }
};

struct DepthwisePart {  // what one thread takes at once: a panel of channels, some examples, some rows of the outputs
  int64_t panel, first_example, last_example, first_row, last_row;
};

struct DepthwiseGradient {
  Depthwise shape;    // x and coefficients of the forward pass; y and bias unused
  const float* grad;    // (B, OH, OW, C), or (B, C, OH, OW) where the maps are planar
  const float* weight;  // (n, C, taps)
  float* weight_grad;   // (n, C, taps), written
};

// The kernels of one instruction set. `coefficient_grad` of a gradient is (B, n), added to.
struct Kernels {
  using Multiply = void (*)(const Gemm&, int64_t first_block, int64_t last_block, int64_t first_example, int64_t last_example);
  const char* name;
  void (*pack)(const Experts&, int64_t block, float* packed);              // one block
  void (*unpack)(const Experts&, int64_t block, float* packed, float* to);  // one block, to where experts have their strides
  // mixed[b] = Σ_i c[b][i] experts[i] of `length` numbers; experts are `step` apart, what is mixed follows one another.
  void (*mix)(const float* experts, int64_t count, int64_t step, int64_t length, const float* c, int64_t examples,
              float* mixed);
  // An example's planes of `channels` as rows of channels that lie `step` apart, and the other way round.
  void (*to_rows)(const float* planes, int64_t plane, int64_t positions, int64_t channels, float* rows, int64_t step);
  void (*to_planes)(const float* rows, int64_t step, int64_t positions, int64_t channels, float* planes, int64_t plane);
  Multiply gemm;
  Multiply gemm_bf16;  // where the maps are bf16
  int64_t gradient_blocks;  // that gemm_gradient takes at once
  // Of the blocks [block, block + blocks) of one group and the examples [b0, b1); `weight` and the gradient of the experts,
  // which is written, are packed and begin with the first block.
  void (*gemm_gradient)(const GemmGradient&, int64_t block, int64_t blocks, int64_t b0, int64_t b1, const float* weight,
                        float* packed_grad, float* coefficient_grad);
  void (*depthwise)(const Depthwise&, const DepthwisePart&);
  void (*depthwise_gradient)(const DepthwiseGradient&, int64_t panel, float* coefficient_grad);
};

extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;

// `gemm_bf16` for AMX, on CPUs that have AVX-512 with bf16 too.
void amx_gemm(const Gemm& g, int64_t first_block, int64_t last_block, int64_t first_example, int64_t last_example);

}  // namespace condconv
