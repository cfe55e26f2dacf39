"""GPU kernels in Triton: depthwise convolutions with one weight for each example, forward and backward.

Activations are channels_last. Sizes of the kernel and strides are known when a kernel is compiled. Importing this
module imports Triton.
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
