"""The operator `condconv::triton_depthwise`: schema, shape rule, gradient, and how its Triton kernels are launched.

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


torch.library.define(
    "condconv::triton_depthwise",
    "(Tensor x, Tensor coefficients, Tensor experts, int[2] stride, int[2] padding, int[2] dilation)"
    " -> Tensor",
)
torch.library.define(
    "condconv::triton_depthwise_backward",
    "(Tensor grad, Tensor x, Tensor coefficients, Tensor experts, int[2] stride, int[2] padding, int[2] dilation,"
    " bool[3] mask) -> (Tensor, Tensor, Tensor)",
)

depthwise = torch.ops.condconv.triton_depthwise
"""y (B, C, H', W'), channels_last, of x (B, C, H, W); example b's kernel is Σₑ coefficients[b, e] experts[e].

Differentiable once. x is f32, bf16 or f16, and copied where it is not channels_last. Coefficients (B, n) and experts
(n, C, 1, kh, kw) may have other dtypes: they are mixed and multiplied in f32.
"""

depthwise_backward = torch.ops.condconv.triton_depthwise_backward
"""The gradients of x, coefficients and experts; empty where `mask` says that one is not needed.

Kernels are mixed again: they are small beside x.
"""


@torch.library.register_fake("condconv::triton_depthwise")
def _empty_output(x: Tensor, coefficients: Tensor, experts: Tensor, *geometry: Any) -> Tensor:
    size = _geometry(x, *geometry).output_size(x.shape[2:], experts.shape[3:])
    shape = (x.shape[0], experts.shape[1], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake("condconv::triton_depthwise_backward")
def _empty_gradients(
    grad: Tensor, x: Tensor, coefficients: Tensor, experts: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    like = (d_x, torch.empty_like(coefficients), experts.new_empty(experts.shape))
    d_x, d_coefficients, d_experts = (
        t if needed else t.new_empty(0) for t, needed in zip(like, arguments[-1], strict=True)
    )
    return d_x, d_coefficients, d_experts


@torch.library.impl("condconv::triton_depthwise", ("cpu", "cuda"))
def _depthwise(x: Tensor, coefficients: Tensor, experts: Tensor, *geometry: Any) -> Tensor:
    if x.dtype not in DTYPES:
        raise argument_error("condconv::triton_depthwise", "x", x.dtype, "must be f32, bf16 or f16", "convert it")
    y = _empty_output(x, coefficients, experts, *geometry)
    x, coefficients, experts = _prepared(x), coefficients.float().contiguous(), experts.contiguous()
    constants = _constants(experts, _geometry(x, *geometry))
    with torch.cuda.device_of(x):
        _convolve(x, _mix(coefficients, experts), y, constants, back=False)
    return y


@torch.library.impl("condconv::triton_depthwise_backward", ("cpu", "cuda"))
def _depthwise_backward(
    grad: Tensor, x: Tensor, coefficients: Tensor, experts: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mask = arguments[-1]
    d_x, d_coefficients, d_experts = _empty_gradients(grad, x, coefficients, experts, mask)
    alpha, experts = coefficients.float().contiguous(), experts.contiguous()
    grad, x = _prepared(grad), _prepared(x)
    constants = _constants(experts, _geometry(x, *arguments[:-1]))
    with torch.cuda.device_of(x):
        if mask[0]:
            _convolve(grad, _mix(alpha, experts), d_x, constants, back=True)
        if mask[1] or mask[2]:
            sums = _gradient(grad, x, alpha, experts, constants)
            d_coefficients = sums[0].to(coefficients.dtype) if mask[1] else d_coefficients
            d_experts = sums[1].to(experts.dtype) if mask[2] else d_experts
    return d_x, d_coefficients, d_experts


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[:3])
    gradients = depthwise_backward(grad, *ctx.saved_tensors, *ctx.geometry, mask)
    return (*(g if needed else None for g, needed in zip(gradients, mask, strict=True)), *[None] * 3)


torch.library.register_autograd("condconv::triton_depthwise", _backward, setup_context=_save)


def _geometry(x: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> ConvGeometry:
    return ConvGeometry(tuple(stride), tuple(padding), tuple(dilation), x.shape[1])


def _prepared(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _mix(coefficients: Tensor, experts: Tensor) -> Tensor:
    """Each example's kernel, (B, |W|) in f32."""
    return torch.mm(coefficients, experts.flatten(1).float())


def _constants(experts: Tensor, geometry: ConvGeometry) -> dict[str, Any]:
    """What all kernels are compiled for."""
    pairs = {"KERNEL": experts.shape[3:], "STRIDE": geometry.stride}
    pairs |= {"PADDING": geometry.padding, "DILATION": geometry.dilation}
    sizes = {f"{name}_{side}": pair[i] for name, pair in pairs.items() for i, side in enumerate("HW")}
    return {**sizes, "enable_fp_fusion": True}


def _convolve(x: Tensor, weight: Tensor, y: Tensor, constants: dict[str, Any], back: bool) -> None:
    """Write y for weights (B, C·kh·kw)."""
    from condconv.execution.native import triton_kernels as kernels

    block_m, block_c = 64, 32
    grid = x.shape[0], math.ceil(math.prod(y.shape[2:]) / block_m), math.ceil(x.shape[1] / block_c)
    kernels.depthwise[grid](
        x, weight, y, *x.shape[1:], *y.shape[2:], BACK=back, **constants, BLOCK_M=block_m, BLOCK_C=block_c
    )


def _gradient(
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
