"""What torch must know of the compiled operators besides their kernels: shapes, gradients, floating-point operations.

The convolutions mix the kernels of a few examples panel by panel in cache and multiply at once; B·|W| is never in
memory. Second derivatives are taken of plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condconv.execution.grouped import Grouped
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture
from condconv.operators import built


def _layout(x: Tensor) -> torch.memory_format:
    """The layout of what is computed from x: that of x."""
    return torch.contiguous_format if x.shape[1] > 1 and x.stride(1) != 1 else torch.channels_last


def _output(x: Tensor, kernel_shape: Sequence[int], geometry: ConvGeometry) -> Tensor:
    size = geometry.output_size(x.shape[2:], kernel_shape[2:])
    shape = (x.shape[0], geometry.out_channels(kernel_shape), *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))


def _geometry(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> ConvGeometry:
    return ConvGeometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def _conv2d_fake(x: Tensor, coefficients: Tensor, experts: Tensor, *geometry: Any) -> Tensor:
    return _output(x, experts.shape[1:], _geometry(*geometry))


def _conv2d_packed_fake(
    x: Tensor,
    coefficients: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    kernel_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    threshold: float,
) -> Tensor:
    return _output(x, kernel_shape, _geometry(stride, padding, dilation, groups))


def _conv2d_backward_fake(
    grad: Tensor, x: Tensor, coefficients: Tensor, experts: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs_input = arguments[-1]
    dx = torch.empty(
        (x.shape[0] if needs_input else 0, *x.shape[1:]),
        dtype=x.dtype,
        device=x.device,
        memory_format=_layout(x),
    )
    dc, dw = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (coefficients, experts))
    return dx, dc, dw


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, coefficients, experts, *ctx.geometry = inputs
    ctx.save_for_backward(x, coefficients, experts)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, coefficients, experts = ctx.saved_tensors
    needs_input = ctx.needs_input_grad[0]
    dx, dc, dw = torch.ops.condconv.conv2d_backward(grad, x, coefficients, experts, *ctx.geometry, needs_input)
    return (dx if needs_input else None), dc, dw, None, None, None, None


def _save_for_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, x, coefficients, experts, *ctx.geometry, ctx.needs_input = inputs
    ctx.save_for_backward(grad, x, coefficients, experts)


def _second_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, coefficients, experts = ctx.saved_tensors
    geometry = _geometry(*ctx.geometry)

    def convolve(x: Tensor, coefficients: Tensor, experts: Tensor) -> Tensor:
        mixture = Mixture(coefficients.float(), experts.float(), None)
        return Grouped()(x.float(), mixture, geometry).to(grad.dtype)

    def backward(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(convolve, *inputs)[1](grad)

    if not ctx.needs_input:
        gradients = (torch.zeros_like(x), *gradients[1:])
    return *torch.func.vjp(backward, grad, x, coefficients, experts)[1](gradients), *[None] * 5


def mixing_macs(batch: int, experts: int, kernel_shape: Sequence[int]) -> int:
    """Return the multiply-adds of mixing the kernels of a batch."""
    return batch * experts * math.prod(kernel_shape)


def _flops(x: Sequence[int], experts: int, kernel_shape: Sequence[int], geometry: ConvGeometry) -> int:
    macs = x[0] * geometry.macs(kernel_shape, x[2:]) + mixing_macs(x[0], experts, kernel_shape)
    return 2 * macs


def _describe() -> None:
    """Tell torch shapes, gradients and floating-point operations of the operators."""
    from torch.utils.flop_counter import register_flop_formula  # It imports Triton where that is installed.

    torch.library.register_fake("condconv::conv2d", _conv2d_fake)
    torch.library.register_fake("condconv::conv2d_packed", _conv2d_packed_fake)
    torch.library.register_fake("condconv::conv2d_backward", _conv2d_backward_fake)
    torch.library.register_fake(
        "condconv::pooled_linear", lambda x, weight, *rest: x.new_empty((x.shape[0], weight.shape[0]))
    )
    torch.library.register_autograd("condconv::conv2d", _backward, setup_context=_save)
    torch.library.register_autograd("condconv::conv2d_backward", _second_backward, setup_context=_save_for_second)

    @register_flop_formula(torch.ops.condconv.conv2d)
    def _(x: Any, coefficients: Any, experts: Any, *geometry: Any, **_: Any) -> int:
        return _flops(x, experts[0], experts[1:], _geometry(*geometry))

    @register_flop_formula(torch.ops.condconv.conv2d_packed)
    def _(x: Any, coefficients: Any, packed: Any, scale: Any, bias: Any, shift: Any, *rest: Any, **_: Any) -> int:
        return _flops(x, coefficients[1], rest[0], _geometry(*rest[1:5]))

    @register_flop_formula(torch.ops.condconv.conv2d_backward)
    def _(grad: Any, x: Any, coefficients: Any, experts: Any, *arguments: Any, **_: Any) -> int:
        # The mixed kernels' gradient costs one convolution, x's another; each is paired with as much mixing again.
        return _flops(x, experts[0], experts[1:], _geometry(*arguments[:4])) * (2 if arguments[4] else 1)


if built():
    _describe()
