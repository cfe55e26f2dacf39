// The gemm for AMX, where maps are bf16: kernels are mixed in f32 and rounded to bf16, their products are summed in f32.
// A tile register has 16 rows of 64 bytes: rows of x × 32 numbers, or pairs of rows of a panel × 16 columns, or 16 × 16 sums.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "conv.h"
#include "scratch.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#define LANES 16

namespace condconv {
namespace {
#include "mixing.inc"

constexpr int64_t kTile = 16;                 // rows of a tile register
constexpr int64_t kSums = kTile * kTile;      // numbers of a tile of sums
constexpr int64_t kStep = 32;                 // rows of a panel that one instruction multiplies
constexpr int64_t kDepth = 512;               // rows of a bank that are mixed, then multiplied; 32 rows of x fit into L1
constexpr int64_t kRowStep = kDepth + kStep;  // between gathered rows: an odd number of cache lines
constexpr int64_t kPanel = kDepth * kBlock;   // numbers of one block of a panel
constexpr int64_t kExamples = 4;              // examples whose kernels are mixed at once
constexpr int64_t kMixed = 64;                 // rows that are mixed, then rounded
constexpr int64_t kPanelBlocks = 8;           // blocks of columns that are mixed at once
constexpr int64_t kOutputs = 128 * 1024;      // sums that stay in L2

// Registers 0 to 3 are sums of (rows × columns) = (2 × 2) tiles, 4 and 5 rows of x, 6 and 7 columns of a panel.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t height) {
    for (int i = 0; i < 8; i++) rows[i] = static_cast<uint8_t>(i < 6 ? height : kTile);
  }
};

class Tiles {  // the tile registers of this thread, while it lives
 public:
  explicit Tiles(int64_t height) {
    const TileConfig config(height);
    asm volatile("ldtilecfg %0" ::"m"(config));  // GCC's intrinsic does not say that it reads all of it
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

// sums (+)= rows · panel over `steps` steps, for one or two tiles of `height` rows and one or two blocks of columns.
template <int ROWS, int COLUMNS>
static void multiply(const uint16_t* rows, int64_t height, const uint16_t* panel, int64_t steps, bool first, float* sums) {
  asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
  if (first) {
    _tile_zero(0);
    if constexpr (COLUMNS > 1) _tile_zero(1);
    if constexpr (ROWS > 1) _tile_zero(2);
    if constexpr (ROWS > 1 && COLUMNS > 1) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kLine);
    if constexpr (COLUMNS > 1) _tile_loadd(1, sums + kSums, kLine);
    if constexpr (ROWS > 1) _tile_loadd(2, sums + 2 * kSums, kLine);
    if constexpr (ROWS > 1 && COLUMNS > 1) _tile_loadd(3, sums + 3 * kSums, kLine);
  }
  for (int64_t s = 0; s < steps; s++, rows += kStep, panel += kStep * kBlock) {
    _tile_loadd(4, rows, kRowStep * 2);
    _tile_loadd(6, panel, kLine);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (COLUMNS > 1) {
      _tile_loadd(7, panel + kPanel, kLine);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (ROWS > 1) {
      _tile_loadd(5, rows + height * kRowStep, kRowStep * 2);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (COLUMNS > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kLine);
  if constexpr (COLUMNS > 1) _tile_stored(1, sums + kSums, kLine);
  if constexpr (ROWS > 1) _tile_stored(2, sums + 2 * kSums, kLine);
  if constexpr (ROWS > 1 && COLUMNS > 1) _tile_stored(3, sums + 3 * kSums, kLine);
}

// Mixed rows (rows, 16) as bf16, each row interleaved with the next one as tiles need them.
static void interleave(const float* mixed, int64_t rows, uint16_t* to) {
  alignas(64) uint16_t order[2 * LANES];
  for (int i = 0; i < 2 * LANES; i++) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * LANES);
  const __m512i lanes = _mm512_load_si512(order);
  for (int64_t k = 0; k < rows; k += 2, to += 2 * kBlock) {
    const vec next = k + 1 < rows ? load(mixed + (k + 1) * kBlock) : zero();
    const __m512bh pair = _mm512_cvtne2ps_pbh((__m512)next, (__m512)load(mixed + k * kBlock));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(lanes, (__m512i)pair));
  }
}

// The mixed rows [k0, k0 + depth) of `blocks` blocks for a few examples: panels[example][block][depth / 2][16][2].
static void mix_panels(const Gemm& g, int64_t first, int64_t blocks, int64_t k0, int64_t depth, int64_t b, int64_t examples,
                       uint16_t* panels) {
  static thread_local Scratch memory;
  float* mixed = memory.floats(kExamples * kMixed * kBlock);
  Mixer mixer(g.bank, g.taps * g.depth, g.groups * g.blocks(), g.coefficients + b * g.bank.experts, examples, g.threshold);
  for (int64_t v = 0; v < blocks; v++) {
    mixer.turn_to(first + v);
    for (int64_t k = 0; k < depth; k += kMixed) {
      const int64_t rows = std::min(kMixed, depth - k), whole = (rows + kStep - 1) / kStep * kStep, pairs = (rows + 1) / 2;
      mixer.mix(k0 + k, rows, mixed, kMixed * kBlock, false);
      for (int64_t e = 0; e < examples; e++) {
        uint16_t* to = panels + (e * blocks + v) * kPanel + k * kBlock;
        interleave(mixed + e * kMixed * kBlock, rows, to);
        std::memset(to + pairs * 2 * kBlock, 0, (whole - pairs * 2) * kBlock * sizeof(uint16_t));
      }
    }
  }
}

// What the output rows [first, first + rows) read for the rows [k0, k0 + depth) of a bank, with zeros up to a whole step.
static void gather(const Gemm& g, const uint16_t* x, int64_t first, int64_t rows, int64_t k0, int64_t depth, uint16_t* to) {
  for (int64_t k = k0, length; k < k0 + depth; k += length) {
    const int64_t tap = k / g.depth, start = k % g.depth;
    length = std::min(g.depth - start, k0 + depth - k);
    const int32_t* source = g.source + tap * g.rows + first;
    for (int64_t r = 0; r < rows; r++) {
      const uint16_t* from = x + std::max(source[r], 0) * g.x_strides.position + start;
      const __mmask32 inside = source[r] < 0 ? 0 : ~__mmask32{0};
      for (int64_t c = 0; c < length; c += kStep) {  // what is written beyond the length is overwritten by what follows
        const __mmask32 mask = length - c < kStep ? inside & ((1u << (length - c)) - 1) : inside;
        _mm512_storeu_si512(to + r * kRowStep + k - k0 + c, _mm512_maskz_loadu_epi16(mask, from + c));
      }
    }
  }
  for (int64_t r = 0; r < rows; r++) _mm512_storeu_si512(to + r * kRowStep + depth, _mm512_setzero_si512());
}

struct Part {  // rows and columns of one example whose sums are at hand: tiles[2][2][16][16]
  int64_t first, rows, height, width;  // rows of a tile; columns that are there
  const float* sums;
  const float* bias;
};

static void round_outputs(const Gemm& g, const Part& part, uint16_t* y) {
  for (int64_t r = 0; r < part.rows; r++) {
    const float* from = part.sums + (r < part.height ? r : 2 * kTile + r - part.height) * kTile;
    uint16_t* to = y + g.target[part.first + r] * g.y_strides.position;
    for (int64_t c = 0; c < part.width; c += kBlock) {
      const vec sum = load(from + c / kBlock * kSums) + load(part.bias + c);
      const __mmask16 mask = static_cast<__mmask16>(part.width - c < kBlock ? (1 << (part.width - c)) - 1 : ~0);
      _mm256_mask_storeu_epi16(to + c, mask, (__m256i)_mm512_cvtneps_pbh((__m512)sum));
    }
  }
}

// A few blocks of columns of one group for the examples [b0, b1), whose rows are tiles of `height`.
static void gemm_blocks(const Gemm& g, int64_t height, int64_t group, int64_t block, int64_t blocks, int64_t b0, int64_t b1) {
  static thread_local Scratch panel_memory, row_memory, bias_memory, sum_memory;
  const int64_t K = g.taps * g.depth, column = group * g.columns + block * kBlock, padded = (blocks + 1) / 2 * 2 * kBlock;
  const int64_t width = std::min(blocks * kBlock, g.columns - block * kBlock), at_once = std::min(kExamples, b1 - b0);
  const int64_t parts = (g.rows + 2 * height - 1) / (2 * height) * (padded / (2 * kBlock)) * 4 * kSums;
  const bool kept = K > kDepth;  // else the sums of a part are whole at once, and all parts share their memory
  float* sums = sum_memory.floats(kept ? (b1 - b0) * parts : 4 * kSums);
  uint16_t* panels = reinterpret_cast<uint16_t*>(panel_memory.floats(at_once * blocks * kPanel / 2));
  uint16_t* rows = reinterpret_cast<uint16_t*>(row_memory.floats(2 * kTile * kRowStep / 2));
  float* bias = bias_memory.floats(padded);
  for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, K - k0), steps = (depth + kStep - 1) / kStep;
    const bool last = k0 + depth == K;
    for (int64_t b = b0; b < b1; b++) {
      const int64_t e = (b - b0) % at_once;
      if (e == 0) mix_panels(g, group * g.blocks() + block, blocks, k0, depth, b, std::min(at_once, b1 - b), panels);
      if (last) {
        mix_bias(g.bias, g.shift, g.coefficients + b * g.bank.experts, g.bank.experts, g.threshold, g.groups * g.columns,
                 column, width, padded, bias);
      }
      const uint16_t* x = static_cast<const uint16_t*>(g.x) + b * g.x_strides.example + group * g.depth;
      uint16_t* y = static_cast<uint16_t*>(g.y) + b * g.y_strides.example + column;
      float* at = sums + (kept ? (b - b0) * parts : 0);
      for (int64_t first = 0; first < g.rows; first += 2 * height) {
        const int64_t count = std::min(2 * height, g.rows - first);
        gather(g, x, first, count, k0, depth, rows);
        for (int64_t v = 0; v < blocks; v += 2, at += kept ? 4 * kSums : 0) {
          const bool pair = v + 1 < blocks;
          const auto run = count > height ? (pair ? multiply<2, 2> : multiply<2, 1>) : (pair ? multiply<1, 2> : multiply<1, 1>);
          run(rows, height, panels + (e * blocks + v) * kPanel, steps, k0 == 0, at);
          const int64_t c = v * kBlock;
          if (last) round_outputs(g, {first, count, height, std::min(2 * kBlock, width - c), at, bias + c}, y + c);
        }
      }
    }
  }
}

}  // namespace

void amx_gemm(const Gemm& g, int64_t first_block, int64_t last_block, int64_t b0, int64_t b1) {
  const int64_t tiles = (g.rows + kTile - 1) / kTile, height = (g.rows + tiles - 1) / tiles;  // as even as can be
  const Tiles registers(height);
  for (int64_t at = first_block, blocks; at < last_block; at += blocks) {
    blocks = std::min({kPanelBlocks, last_block - at, g.blocks() - at % g.blocks()});
    // As many examples at once as keep their sums in L2 while the rows of the bank go by; all, if one run does it.
    const int64_t some = std::max(kOutputs / (g.rows * blocks * kBlock) / kExamples * kExamples, kExamples);
    const int64_t fit = g.taps * g.depth > kDepth ? some : b1 - b0;
    for (int64_t b = b0; b < b1; b += fit) {
      gemm_blocks(g, height, at / g.blocks(), at % g.blocks(), blocks, b, std::min(b + fit, b1));
    }
  }
}

}  // namespace condconv
#endif
