"""The operator `condconv::triton_conv2d`: schema, shape rule, gradient, and how its Triton kernels are launched.

Importing this module defines the operator and needs torch alone; Triton is imported when the operator first runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condconv.errors import argument_error
from condconv.geometry import ConvGeometry

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets its kernels, on tensors of any device; Triton reads the variable when it is imported."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_ENOUGH_PROGRAMS = 128  # About the number of multiprocessors of a large GPU.


torch.library.define(
    "condconv::triton_conv2d",
    "(Tensor x, Tensor coefficients, Tensor experts, int[2] stride, int[2] padding, int[2] dilation, int groups)"
    " -> Tensor",
)
torch.library.define(
    "condconv::triton_conv2d_backward",
    "(Tensor grad, Tensor x, Tensor coefficients, Tensor experts, int[2] stride, int[2] padding, int[2] dilation,"
    " int groups, bool[3] mask) -> (Tensor, Tensor, Tensor)",
)

conv2d = torch.ops.condconv.triton_conv2d
"""y (B, O, H', W'), channels_last, of x (B, I, H, W); example b's kernel is Σₑ coefficients[b, e] experts[e].

Differentiable once. x is f32, bf16 or f16, and copied where it is not channels_last. Coefficients (B, n) and experts,
(n, O, I, kh, kw) or depthwise (n, C, 1, kh, kw) with `groups` = C, may have other dtypes: they are mixed in f32 and
rounded to the dtype of x; products are summed in f32. f32 products follow `torch.backends.cuda.matmul.allow_tf32`.
"""

conv2d_backward = torch.ops.condconv.triton_conv2d_backward
"""The gradients of x, coefficients and experts; empty where `mask` says that one is not needed.

Mixed kernels are computed again and their gradients spent tile by tile. Only a depthwise convolution, whose kernels are
small beside x, holds one for each example.
"""


@torch.library.register_fake("condconv::triton_conv2d")
def _empty_output(x: Tensor, coefficients: Tensor, experts: Tensor, *geometry: Any) -> Tensor:
    size = _geometry(*geometry).output_size(x.shape[2:], experts.shape[3:])
    shape = (x.shape[0], experts.shape[1], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake("condconv::triton_conv2d_backward")
def _empty_gradients(
    grad: Tensor, x: Tensor, coefficients: Tensor, experts: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    like = (d_x, torch.empty_like(coefficients), experts.new_empty(experts.shape))
    d_x, d_coefficients, d_experts = (
        t if needed else t.new_empty(0) for t, needed in zip(like, arguments[-1], strict=True)
    )
    return d_x, d_coefficients, d_experts


@torch.library.impl("condconv::triton_conv2d", ("cpu", "cuda"))
def _conv2d(x: Tensor, coefficients: Tensor, experts: Tensor, *geometry: Any) -> Tensor:
    if x.dtype not in DTYPES:
        raise argument_error("condconv::triton_conv2d", "x", x.dtype, "must be f32, bf16 or f16", "convert it")
    y = _empty_output(x, coefficients, experts, *geometry)
    x, coefficients, experts = _prepared(x), coefficients.float().contiguous(), experts.contiguous()
    constants = _constants(experts, _geometry(*geometry))
    with torch.cuda.device_of(x):
        if geometry[-1] == 1:
            _mix_and_multiply(x, coefficients, experts, y, constants, back=False)
        else:
            _depthwise(x, _mix(coefficients, experts), y, constants, back=False)
    return y


@torch.library.impl("condconv::triton_conv2d_backward", ("cpu", "cuda"))
def _conv2d_backward(
    grad: Tensor, x: Tensor, coefficients: Tensor, experts: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    geometry, mask = _geometry(*arguments[:-1]), arguments[-1]
    d_x, d_coefficients, d_experts = _empty_gradients(grad, x, coefficients, experts, mask)
    alpha, experts = coefficients.float().contiguous(), experts.contiguous()
    grad, x = _prepared(grad), _prepared(x)
    constants = _constants(experts, geometry)
    with torch.cuda.device_of(x):
        if mask[0] and geometry.groups == 1:
            _mix_and_multiply(grad, alpha, experts, d_x, constants, back=True)
        elif mask[0]:
            _depthwise(grad, _mix(alpha, experts), d_x, constants, back=True)
        if mask[1] or mask[2]:
            gradient = _mixture_gradient if geometry.groups == 1 else _depthwise_gradient
            sums = gradient(grad, x, alpha, experts, constants)
            d_coefficients = sums[0].to(coefficients.dtype) if mask[1] else d_coefficients
            d_experts = sums[1].to(experts.dtype) if mask[2] else d_experts
    return d_x, d_coefficients, d_experts


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[:3])
    gradients = conv2d_backward(grad, *ctx.saved_tensors, *ctx.geometry, mask)
    return (*(g if needed else None for g, needed in zip(gradients, mask, strict=True)), *[None] * 4)


torch.library.register_autograd("condconv::triton_conv2d", _backward, setup_context=_save)


def _geometry(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> ConvGeometry:
    return ConvGeometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def _prepared(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _mix(coefficients: Tensor, experts: Tensor) -> Tensor:
    """Each example's kernel, (B, |W|) in f32: for depthwise convolutions, where it is small beside x."""
    return torch.mm(coefficients, experts.flatten(1).float())


def _constants(experts: Tensor, geometry: ConvGeometry) -> dict[str, Any]:
    """What all kernels are compiled for."""
    pairs = {"KERNEL": experts.shape[3:], "STRIDE": geometry.stride}
    pairs |= {"PADDING": geometry.padding, "DILATION": geometry.dilation}
    sizes = {f"{name}_{side}": pair[i] for name, pair in pairs.items() for i, side in enumerate("HW")}
    return {**sizes, "enable_fp_fusion": True}


def _precision(x: Tensor) -> dict[str, Any]:
    """In which dtype and how tiles are multiplied."""
    import triton.language as tl

    # The interpreter's product does not know bf16: it gets rounded values in f32, which is what the hardware computes.
    widened = x.dtype == torch.float32 or INTERPRETED
    operand = tl.float32 if widened else {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[x.dtype]
    return {"OPERAND": operand, "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"}


def _exact(x: Tensor) -> bool:
    """Whether products run on the f32 units, which need smaller tiles than tensor cores."""
    return x.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32


def _power_of_2(size: int, low: int, high: int) -> int:
    """The next power of two, clamped."""
    return max(low, min(high, 1 << (size - 1).bit_length()))


def _mix_and_multiply(
    x: Tensor, coefficients: Tensor, experts: Tensor, y: Tensor, constants: dict[str, Any], back: bool
) -> None:
    """Write y, in tiles of at most 128 positions and 64 channels."""
    from condconv.execution.native import triton_kernels as kernels

    batch, channels, positions = x.shape[0], y.shape[1], math.prod(y.shape[2:])
    block_m = _power_of_2(positions, 16, 128)
    block_n = _power_of_2(channels, 16, 32 if _exact(x) else 64)
    rows = batch * math.ceil(positions / block_m)
    while block_n > 16 and rows * math.ceil(channels / block_n) < _ENOUGH_PROGRAMS:
        block_n //= 2
    kernels.mix_and_multiply[(rows, math.ceil(channels / block_n))](
        x, coefficients, experts, y, *x.shape[1:], *y.shape[1:],
        NUM_EXPERTS=experts.shape[0], BACK=back, **_precision(x), **constants,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=16 if _exact(x) else 32,
        num_warps=8 if block_m > 64 else 4, num_stages=2,
    )  # fmt: skip


def _mixture_gradient(
    grad: Tensor, x: Tensor, coefficients: Tensor, experts: Tensor, constants: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Gradients of coefficients and experts, in f32; the batch is split where the experts have too few tiles."""
    from condconv.execution.native import triton_kernels as kernels

    batch, out_channels, depth = x.shape[0], grad.shape[1], math.prod(experts.shape[2:])
    block_n, block_k = 32, 64
    grid = math.ceil(out_channels / block_n), math.ceil(depth / block_k)
    splits = max(1, min(_ENOUGH_PROGRAMS // math.prod(grid), batch))
    d_coefficients = x.new_empty((math.prod(grid), *coefficients.shape), dtype=torch.float32)
    d_experts = x.new_zeros((splits, *experts.shape), dtype=torch.float32)
    kernels.mixture_gradient[(*grid, splits)](
        grad, x, coefficients, experts, d_coefficients, d_experts, batch, *x.shape[1:], *grad.shape[1:],
        NUM_EXPERTS=experts.shape[0], **_precision(x), **constants,
        BLOCK_M=16 if _exact(x) else 32, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4, num_stages=2,
    )  # fmt: skip
    return d_coefficients.sum(0), d_experts[0] if splits == 1 else d_experts.sum(0)


def _depthwise(x: Tensor, weight: Tensor, y: Tensor, constants: dict[str, Any], back: bool) -> None:
    """Write y for weights (B, C·kh·kw)."""
    from condconv.execution.native import triton_kernels as kernels

    block_m, block_c = 64, 32
    grid = x.shape[0], math.ceil(math.prod(y.shape[2:]) / block_m), math.ceil(x.shape[1] / block_c)
    kernels.depthwise[grid](
        x, weight, y, *x.shape[1:], *y.shape[2:], BACK=back, **constants, BLOCK_M=block_m, BLOCK_C=block_c
    )


def _depthwise_gradient(
    grad: Tensor, x: Tensor, coefficients: Tensor, experts: Tensor, constants: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Gradients of coefficients and experts, in f32, of each example's gradient (B, C·kh·kw)."""
    from condconv.execution.native import triton_kernels as kernels

    block_m, block_c = 64, 32
    batch, channels = x.shape[:2]
    d_weight = x.new_empty((batch, channels * math.prod(experts.shape[3:])), dtype=torch.float32)
    kernels.depthwise_gradient[(batch, math.prod(experts.shape[3:]), math.ceil(channels / block_c))](
        grad, x, d_weight, *x.shape[1:], *grad.shape[2:], **constants, BLOCK_M=block_m, BLOCK_C=block_c
    )
    d_experts = torch.mm(coefficients.t(), d_weight).view(experts.shape)
    return torch.mm(d_weight, experts.flatten(1).float().t()), d_experts
