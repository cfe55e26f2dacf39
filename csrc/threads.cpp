#include "threads.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "isa.h"
#include "scratch.h"

namespace condconv {
namespace {

constexpr int64_t kWorthThreads = 256 * 1024;  // multiply-adds that are worth waking the other threads

int64_t threads_for(int64_t macs) { return macs < kWorthThreads ? 1 : std::max<int64_t>(1, torch::stable::get_num_threads()); }

constexpr int64_t kRead = 16;  // multiply-adds that reading a number of the bank costs

// Splits (blocks of columns) × (examples) among the threads, so that the one with most to do has least: a block costs
// something for each example, and its experts are read by every thread that has some of them.
template <class F>
void in_tiles(int64_t blocks, int64_t batch, int64_t threads, int64_t example_cost, int64_t block_cost, const F& run) {
  int64_t best = -1, rows = 1, columns = 1;
  for (int64_t r = 1; r <= std::min(batch, threads); r++) {
    const int64_t c = std::min(blocks, threads / r), examples = (batch + r - 1) / r;
    const int64_t cost = (examples * example_cost + block_cost) * ((blocks + c - 1) / c);
    if (best < 0 || cost < best) best = cost, rows = r, columns = c;
  }
  torch::stable::parallel_for(0, rows * columns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const int64_t r = t % rows, c = t / rows;
      run(blocks * c / columns, blocks * (c + 1) / columns, batch * r / rows, batch * (r + 1) / rows);
    }
  });
}

constexpr int64_t kDepthwiseCost = 4;  // of a multiply-add beside one of a matrix product
constexpr int64_t kPanelKernels = 256 * 1024;  // floats of a depthwise panel's mixed kernels, which stay in L2

constexpr int64_t kPacked = 256 * 1024;                  // floats of packed experts that stay in L2
constexpr int64_t kFewestBlocks = 3, kMostBlocks = 12;  // that are packed, then multiplied: to read x seldom

// The blocks [c0, c1) of the examples [b0, b1) with experts as they are: a few blocks are packed and then multiplied while
// they are in cache, so that no more of the packed bank is ever in memory. Fewer examples than experts are mixed first,
// and packed instead, where a block of columns is one run of memory.
void gemm_unpacked(const Gemm& g, const Experts& e, Kernels::Multiply gemm, int64_t c0, int64_t c1, int64_t b0, int64_t b1) {
  static thread_local Scratch packed_memory, mixed_memory;
  const Kernels& k = checked_kernels();
  const int64_t K = e.taps * e.depth, examples = b1 - b0;
  const bool mixed_first = examples < e.count && e.column_stride == K;
  const int64_t block = (mixed_first ? examples : e.count) * K * kBlock;  // numbers that are packed for a block of columns
  const int64_t most = std::clamp(kPacked / block, kFewestBlocks, kMostBlocks), parts = (c1 - c0 + most - 1) / most;
  const int64_t together = (c1 - c0 + parts - 1) / parts;
  float* packed = packed_memory.floats(together * block);
  const std::vector<float> ones(b1, 1.0f);
  Gemm part = g;
  for (int64_t first = c0, last; first < c1; first = last) {
    last = std::min(first + together, c1);
    part.bank.first_block = first;
    if (!mixed_first) {
      for (int64_t c = first; c < last; c++) k.pack(e, c, packed + (c - first) * block);
      part.bank.data = packed;
      gemm(part, first, last, b0, b1);
      continue;
    }
    for (int64_t c = first; c < last; c++) {
      const int64_t column = c % g.blocks() * kBlock, width = std::min(kBlock, e.columns - column);
      const float* from = e.data + c / g.blocks() * e.group_stride + column * K;
      float* mixed = mixed_memory.floats(examples * width * K);
      k.mix(from, e.count, e.expert_stride, width * K, g.coefficients + b0 * e.count, examples, mixed);
      for (int64_t b = 0; b < examples; b++) {
        const Experts one{mixed + b * width * K, 1, 1, e.taps, e.depth, width, 0, 0, e.depth_stride, K};
        k.pack(one, 0, packed + (b * together + c - first) * K * kBlock);
      }
    }
    part.bank.experts = 1, part.bank.mixed = true, part.coefficients = ones.data();
    for (int64_t b = 0; b < examples; b++) {
      part.bank.data = packed + b * together * K * kBlock;
      gemm(part, first, last, b0 + b, b0 + b + 1);
    }
  }
}

}  // namespace

const Kernels& checked_kernels() {
  const Kernels* k = kernels();
  STD_TORCH_CHECK(k != nullptr, "condconv: this CPU has none of the instruction sets of the native operator");
  return *k;
}

// Threads share the examples, whose maps lie together in memory; where these cannot be shared evenly, the channels, so that
// each expert is read once; and where neither can, the rows. A panel is as wide as may be: neighbouring spans of channels
// are what the CPU itself fetches ahead.
void run_depthwise(Depthwise d) {
  const Kernels& k = checked_kernels();
  const int64_t macs = d.batch * d.out_height * d.out_width * d.kernel_h * d.kernel_w * d.channels;
  const int64_t threads = threads_for(kDepthwiseCost * macs), spans = d.spans();
  const int64_t share = (spans + threads - 1) / threads;  // of the thread with most spans
  const bool even = 8 * share * threads <= 9 * spans;
  const int64_t groups = d.batch % threads == 0 ? threads : 1;
  const int64_t bands = groups == 1 && !even ? std::min(threads, d.out_height) : 1, sharing = groups * bands == 1 ? threads : 1;
  const int64_t examples = std::min(d.batch / groups, kMixedExamples);
  const int64_t widest = std::max<int64_t>(kPanelKernels / (examples * d.kernel_h * d.kernel_w * kSpan), 1);
  d.panels = std::min((spans + widest * sharing - 1) / (widest * sharing) * sharing, spans);
  std::vector<int64_t> column;
  for (int64_t kw = 0; kw < d.kernel_w; kw++) {
    for (int64_t ow = 0; ow < d.out_width; ow++) {
      const int64_t w = ow * d.stride_w - d.pad_w + kw * d.dilation_w;
      column.push_back(w >= 0 && w < d.width ? w * d.step() * size_of(d.maps) : -1);
    }
  }
  d.column = column.data();
  torch::stable::parallel_for(0, groups * bands * d.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t group = unit / d.panels / bands, band = unit / d.panels % bands;
      k.depthwise(d, {unit % d.panels, d.batch * group / groups, d.batch * (group + 1) / groups,
                      d.out_height * band / bands, d.out_height * (band + 1) / bands});
    }
  });
}

void run_gemm(const Gemm& g, const Experts* experts) {
  const Kernels& k = checked_kernels();
  const auto gemm = g.maps == Storage::bf16 ? k.gemm_bf16 : k.gemm;
  const int64_t n = g.bank.experts, macs = g.batch * (g.rows + n) * g.taps * g.depth * g.columns * g.groups;
  const auto tile = [&](int64_t c0, int64_t c1, int64_t b0, int64_t b1) {
    if (experts) gemm_unpacked(g, *experts, gemm, c0, c1, b0, b1);
    else gemm(g, c0, c1, b0, b1);
  };
  in_tiles(g.groups * g.blocks(), g.batch, threads_for(macs), g.rows + n, kRead * n, tile);
}

namespace {

// Runs `unit(u, part)` for every u with sums (B, n) of its own, and adds them up in the order of the units.
template <class F>
void summed(int64_t units, int64_t size, float* total, const F& unit) {
  std::vector<float> parts(units * size, 0.0f);
  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) unit(u, parts.data() + u * size);
  });
  for (int64_t j = 0; j < size; j++) {
    double sum = 0;
    for (int64_t u = 0; u < units; u++) sum += parts[u * size + j];
    total[j] = static_cast<float>(sum);
  }
}

constexpr int64_t kGradientUnits = 8;          // parts of the work, if it can be split so often
constexpr int64_t kFewestExamples = 4;         // of a part
constexpr int64_t kGradientSums = 4 * 1024 * 1024;  // floats of the experts' gradients that parts of a batch may take

}  // namespace

// The unit is a block or two of columns. Where these are few, the batch is split too, and each part has its own sum.
void run_gemm_gradient(const GemmGradient& g, float* weight_grad, float* coefficient_grad) {
  const Kernels& k = checked_kernels();
  const int64_t n = g.experts.count, block = g.experts.block(), packed = g.experts.blocks() * block;
  const int64_t together = std::min(k.gradient_blocks, g.blocks()), per_group = (g.blocks() + together - 1) / together;
  const int64_t tiles = g.groups * per_group;
  const int64_t wanted = std::min({(kGradientUnits + tiles - 1) / tiles, g.batch / kFewestExamples, kGradientSums / packed});
  const int64_t parts = std::max<int64_t>(wanted, 1);
  const auto first_of = [&](int64_t tile) { return tile / per_group * g.blocks() + tile % per_group * together; };
  const auto blocks_of = [&](int64_t tile) { return std::min(together, g.blocks() - tile % per_group * together); };
  if (parts == 1) {  // No more of the bank is packed than a thread works on.
    summed(tiles, g.batch * n, coefficient_grad, [&](int64_t tile, float* part) {
      static thread_local Scratch memory;
      const int64_t first = first_of(tile), blocks = blocks_of(tile);
      float *weight = memory.floats(2 * blocks * block), *sums = weight + blocks * block;
      for (int64_t v = 0; v < blocks; v++) k.pack(g.experts, first + v, weight + v * block);
      k.gemm_gradient(g, first, blocks, 0, g.batch, weight, sums, part);
      for (int64_t v = 0; v < blocks; v++) k.unpack(g.experts, first + v, sums + v * block, weight_grad);
    });
    return;
  }
  static thread_local Scratch weight_memory, sum_memory;
  float *weight = weight_memory.floats(packed), *sums = sum_memory.floats(parts * packed);
  run_pack(g.experts, weight);
  summed(tiles * parts, g.batch * n, coefficient_grad, [&](int64_t u, float* part) {
    const int64_t tile = u % tiles, p = u / tiles, first = first_of(tile);
    k.gemm_gradient(g, first, blocks_of(tile), g.batch * p / parts, g.batch * (p + 1) / parts, weight + first * block,
                    sums + p * packed + first * block, part);
  });
  torch::stable::parallel_for(0, g.experts.blocks(), kWorthThreads / block + 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) {
      float* to = sums + c * block;
      for (int64_t p = 1; p < parts; p++) {
        for (int64_t j = 0; j < block; j++) to[j] += to[p * packed + j];
      }
      k.unpack(g.experts, c, to, weight_grad);
    }
  });
}

void run_depthwise_gradient(const DepthwiseGradient& d, float* coefficient_grad) {
  const Kernels& k = checked_kernels();
  summed(d.shape.panels, d.shape.batch * d.shape.bank.experts, coefficient_grad,
         [&](int64_t u, float* part) { k.depthwise_gradient(d, u, part); });
}

void run_turn(const float* from, bool to_planar, int64_t batch, int64_t channels, int64_t positions, float* to) {
  constexpr int64_t kTurned = 16 * 1024;  // numbers that are worth a thread
  const Kernels& k = checked_kernels();
  // Parts of an example are blocks of channels of some positions.
  const int64_t rows = std::max<int64_t>(kTurned / channels / kBlock, 1) * kBlock, parts = (positions + rows - 1) / rows;
  torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) {
      const int64_t first = u % parts * rows, count = std::min(rows, positions - first), example = u / parts * positions * channels;
      if (to_planar) k.to_planes(from + example + first * channels, channels, count, channels, to + example + first, positions);
      else k.to_rows(from + example + first, positions, count, channels, to + example + first * channels, channels);
    }
  });
}

void run_pack(const Experts& e, float* packed) {
  const Kernels& k = checked_kernels();
  torch::stable::parallel_for(0, e.blocks(), kWorthThreads / e.block() + 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) k.pack(e, c, packed + c * e.block());
  });
}

}  // namespace condconv
