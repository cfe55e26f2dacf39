"""GPU kernels in Triton: dense convolutions that mix and multiply at once, and depthwise ones with per-example weights.

    y[b] (H'W', O) = patches of x[b] (H'W', K) · (Σₑ α[b, e] Wₑ)ᵀ (K, O)     K = I·kh·kw, in the order of the experts

A program serves one example: it mixes a (O-block × K-block) tile in registers and multiplies with it at once, once for
each block of positions; the programs of the other examples find the bank's tiles in the cache. (A product with several
examples in it, three-dimensional, was tried: warps share such a product by example alone, so that those beyond the
number of examples repeat the work of others, and registers spill.) The gradient of the input is the same product with x
and y, and I and O, exchanged.

Activations are channels_last, experts as banks hold them. Sizes of the kernel, strides and the number of experts are
known when a kernel is compiled. Importing this module imports Triton.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton takes the annotations of a kernel's arguments for types of its own.)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _source(at, tap, size, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, BACK: tl.constexpr):
    """The position that a tap of the output position `at` reads, and whether it exists; BACK: output from input."""
    if BACK:
        shifted = at + PADDING - tap * DILATION
        source = shifted // STRIDE
        return source, (shifted >= 0) & (shifted % STRIDE == 0) & (source < size)
    else:
        source = at * STRIDE - PADDING + tap * DILATION
        return source, (source >= 0) & (source < size)


@triton.jit
def _patches(
    x, m, k, channels, height, width, out_height, out_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    """Tile (m, k) of an example's x (H, W, C) laid out as patches: m = output position, k = (channel, kh, kw)."""
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    row_tap, column_tap = k % TAPS // KERNEL_W, k % KERNEL_W
    row, row_valid = _source((m // out_width)[:, None], row_tap[None, :], height, STRIDE_H, PADDING_H, DILATION_H, BACK)
    column, column_valid = _source(
        (m % out_width)[:, None], column_tap[None, :], width, STRIDE_W, PADDING_W, DILATION_W, BACK
    )
    inside = row_valid & column_valid & (m < out_height * out_width)[:, None] & (k < channels * TAPS)[None, :]
    offset = (row * width + column) * channels + (k // TAPS)[None, :]
    return tl.load(x + offset, mask=inside, other=0.0)


@triton.jit
def mix_and_multiply(
    x, coefficients, experts, y, channels, height, width, out_channels, out_height, out_width,
    NUM_EXPERTS: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, BACK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute y (B, H', W', O) of x (B, H, W, I), coefficients (B, n) and experts (n, O, I, kh, kw).

    BACK: computes the gradient of the input, y (B, H, W, I), of a gradient x (B, H', W', O).
    Grid: (B · blocks of positions, blocks of y's channels).
    """
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    depth = channels * TAPS
    positions = out_height * out_width
    blocks_m = tl.cdiv(positions, BLOCK_M)
    b = tl.cast(tl.program_id(0) // blocks_m, tl.int64)
    m = tl.program_id(0) % blocks_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x += b * (height * width * channels)
    expert_size = tl.cast(depth * out_channels, tl.int64)
    stride_n = TAPS if BACK else depth
    stride_channel = out_channels * TAPS if BACK else TAPS
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_tile = _patches(
            x, m, k, channels, height, width, out_height, out_width, KERNEL_H, KERNEL_W,
            STRIDE_H, STRIDE_W, PADDING_H, PADDING_W, DILATION_H, DILATION_W, BACK,
        )  # fmt: skip
        offset = n[:, None] * stride_n + (k // TAPS * stride_channel + k % TAPS)[None, :]
        inside = (n < out_channels)[:, None] & (k < depth)[None, :]
        mixed = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for e in tl.range(0, NUM_EXPERTS, loop_unroll_factor=min(NUM_EXPERTS, 8)):
            tile = tl.load(experts + e * expert_size + offset, mask=inside, other=0.0)
            mixed += tl.load(coefficients + b * NUM_EXPERTS + e) * tile.to(tl.float32)
        kernel = tl.trans(mixed.to(x_tile.dtype))
        total = tl.dot(x_tile.to(OPERAND), kernel.to(OPERAND), total, input_precision=PRECISION)
    offset = b * (positions * out_channels) + (m[:, None] * out_channels + n[None, :])
    inside = (m < positions)[:, None] & (n < out_channels)[None, :]
    tl.store(y + offset, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def mixture_gradient(
    grad, x, coefficients, experts, d_coefficients, d_experts,
    batch, channels, height, width, out_channels, out_height, out_width,
    NUM_EXPERTS: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add up the gradients of coefficients and experts for x (B, H, W, I) and the gradient of y (B, H', W', O).

    A program computes its (O-block × K-block) tile of the gradient of each example's mixed kernel in registers and
    spends it at once: d_experts (splits, n, O, I, kh, kw) += α · tile, and d_coefficients (tiles, B, n) = tile · Wₑ.
    d_experts is zero to begin with. Grid: (blocks of O, blocks of K, splits of the batch).
    """
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    depth = channels * TAPS
    positions = out_height * out_width
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    split, splits = tl.program_id(2), tl.num_programs(2)
    expert_size = tl.cast(depth * out_channels, tl.int64)
    offset = n[:, None] * depth + k[None, :]
    inside = (n < out_channels)[:, None] & (k < depth)[None, :]
    d_experts += split * NUM_EXPERTS * expert_size
    d_coefficients += tl.cast(tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.int64) * batch * NUM_EXPERTS
    for b in range(split, batch, splits):
        example = tl.cast(b, tl.int64)
        total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for start in range(0, positions, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            grad_offset = example * (positions * out_channels) + (m[:, None] * out_channels + n[None, :])
            grad_inside = (m < positions)[:, None] & (n < out_channels)[None, :]
            grad_tile = tl.trans(tl.load(grad + grad_offset, mask=grad_inside, other=0.0))
            x_tile = _patches(
                x + example * (height * width * channels), m, k, channels, height, width, out_height, out_width,
                KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PADDING_H, PADDING_W, DILATION_H, DILATION_W, False,
            )  # fmt: skip
            total = tl.dot(grad_tile.to(OPERAND), x_tile.to(OPERAND), total, input_precision=PRECISION)
        for e in range(NUM_EXPERTS):
            tile = tl.load(experts + e * expert_size + offset, mask=inside, other=0.0).to(tl.float32)
            tl.store(d_coefficients + b * NUM_EXPERTS + e, tl.sum(tl.sum(total * tile, axis=1), axis=0))
            alpha = tl.load(coefficients + b * NUM_EXPERTS + e)
            before = tl.load(d_experts + e * expert_size + offset, mask=inside, other=0.0)
            tl.store(d_experts + e * expert_size + offset, before + alpha * total, mask=inside)
        tl.debug_barrier()  # What one thread has stored another may load in the next round.


@triton.jit
def depthwise(
    x, weight, y, channels, height, width, out_height, out_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BACK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute y (B, H', W', C) of x (B, H, W, C) and one weight (C, kh, kw) for each example.

    BACK: the gradient of the input of a gradient x. Grid: (B, blocks of positions, blocks of channels).
    """
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    b = tl.cast(tl.program_id(0), tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += b * (height * width * channels)
    weight += b * (channels * TAPS)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for row_tap in range(KERNEL_H):
        row, row_valid = _source(m // out_width, row_tap, height, STRIDE_H, PADDING_H, DILATION_H, BACK)
        for column_tap in tl.static_range(KERNEL_W):
            column, column_valid = _source(m % out_width, column_tap, width, STRIDE_W, PADDING_W, DILATION_W, BACK)
            inside = row_valid & column_valid & (m < out_height * out_width)
            offset = (row * width + column)[:, None] * channels + c[None, :]
            tile = tl.load(x + offset, mask=inside[:, None] & (c < channels)[None, :], other=0.0)
            taps = tl.load(weight + c * TAPS + row_tap * KERNEL_W + column_tap, mask=c < channels, other=0.0)
            total += tile.to(tl.float32) * taps[None, :]
    offset = m[:, None] * channels + c[None, :]
    inside = (m < out_height * out_width)[:, None] & (c < channels)[None, :]
    tl.store(y + b * (out_height * out_width * channels) + offset, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def depthwise_gradient(
    grad, x, d_weight, channels, height, width, out_height, out_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute each example's gradient of its weight, (B, C, kh, kw) f32. Grid: (B, taps, blocks of channels)."""
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    b = tl.cast(tl.program_id(0), tl.int64)
    tap = tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += b * (height * width * channels)
    grad += b * (out_height * out_width * channels)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, out_height * out_width, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row, row_valid = _source(m // out_width, tap // KERNEL_W, height, STRIDE_H, PADDING_H, DILATION_H, False)
        column, column_valid = _source(m % out_width, tap % KERNEL_W, width, STRIDE_W, PADDING_W, DILATION_W, False)
        inside = (row_valid & column_valid & (m < out_height * out_width))[:, None] & (c < channels)[None, :]
        x_tile = tl.load(x + (row * width + column)[:, None] * channels + c[None, :], mask=inside, other=0.0)
        grad_tile = tl.load(grad + m[:, None] * channels + c[None, :], mask=inside, other=0.0)
        total += x_tile.to(tl.float32) * grad_tile.to(tl.float32)
    tl.store(d_weight + (b * channels + c) * TAPS + tap, tl.sum(total, axis=0), mask=c < channels)
