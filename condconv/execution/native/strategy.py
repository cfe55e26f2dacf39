"""The strategy that mixes and multiplies in one pass on a CPU: B·|W| is never in memory, forward or backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from condconv import func_transforms
from condconv.context import only_runs
from condconv.errors import StrategyError
from condconv.execution.closed_forms import batch_of
from condconv.execution.native import library  # noqa: F401 (it tells torch what the operators are)
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, Mixture, Packed, Scaled, tensors
from condconv.operators import load_error

_FLOATS = (torch.float32, torch.bfloat16)
_LIMIT = "must be below 2^31"
"""What csrc/problem.cpp says of sizes that it does not count in."""


def needs_gradient(x: Tensor, lowered: Lowered) -> bool:
    """Whether autograd will follow the convolution of x with them."""
    if not torch.is_grad_enabled():
        return False
    if x.requires_grad:
        return True
    parts: Any = tensors(lowered) if type(lowered) is Scaled else lowered
    return any(isinstance(t, Tensor) and t.requires_grad for t in parts)


def _differentiated(x: Tensor, lowered: Lowered) -> bool:
    """Whether torch has to know what the operator does with x and them."""
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return needs_gradient(x, lowered) or func_transforms.transformed()


def is_counted(x: Tensor, kernel_shape: Sequence[int], geometry: ConvGeometry) -> bool:
    """Whether the operator counts so far: the positions of x, and those of the kernel times those of the output."""
    size, kernel = x.shape[2:], kernel_shape[2:]
    return max(math.prod(size), math.prod(kernel) * math.prod(geometry.output_size(size, kernel))) < 2**31


class Native:
    """The compiled operators of csrc/, for convolutions of one or two dimensions on a CPU with AVX2 or better."""

    name = "native"
    adds_bias = True

    @staticmethod
    def macs(lowered: Lowered, geometry: ConvGeometry, input_size: Sequence[int]) -> tuple[int, int]:
        """Mixing and convolving; int8 experts are scaled through their coefficients, not weight by weight."""
        mixing = lowered.coefficients.numel() * math.prod(lowered.kernel_shape)  # type: ignore[union-attr]
        return mixing, batch_of(lowered) * geometry.macs(lowered.kernel_shape, input_size)

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None."""
        if not isinstance(lowered, Mixture | Packed):
            return "the kernels are mixed already; it needs experts"
        if geometry.rank > 2 or geometry.transposed:
            return "it needs a convolution of one or two dimensions that is not transposed"
        experts = lowered.packed if isinstance(lowered, Packed) else lowered.experts
        if not experts.is_cpu:
            return f"the experts are on {experts.device}; it needs a CPU"
        if not isinstance(lowered, Packed) and experts.dtype not in _FLOATS:
            return f"the experts are {experts.dtype}; it needs float32 or bfloat16"
        return func_transforms.REFUSAL if func_transforms.transformed() else load_error()

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, *space) in the memory format of x (B, I, *space), with the bias.

        Raises:
            StrategyError: sizes beyond what the operator counts in, or packed experts that are to have a gradient.
        """
        try:
            return self._convolve(x, lowered, geometry)
        except RuntimeError as error:
            _, ours, said = str(error).partition("condconv: ")
            if not ours or _LIMIT not in said:
                raise
            raise StrategyError(f"strategy='native': {said.splitlines()[0]}; pass strategy='grouped'") from error

    @staticmethod
    def road(lowered: Lowered, geometry: ConvGeometry) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What plain inference comes to where only x and coefficients change, None where it takes more than a call."""
        fixed = geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        if geometry.rank != 2:
            return None
        if isinstance(lowered, Packed):
            kept, threshold = (*lowered[1:5], lowered.kernel_shape, *fixed), lowered.threshold
            return lambda x, coefficients: torch.ops.condconv.conv2d_packed.default(x, coefficients, *kept, threshold)
        if not isinstance(lowered, Mixture) or lowered.expert_bias is not None:
            return None
        experts = lowered.experts

        def convolve(x: Tensor, coefficients: Tensor) -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                y: Tensor = torch.ops.condconv.conv2d.default(x, coefficients, experts, *fixed)
            return y

        return convolve

    def _convolve(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        assert isinstance(lowered, Mixture | Packed)
        plain = only_runs()
        if not plain and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))  # The experts stay as they are: they are mixed in f32.
        stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
        if line := len(stride) == 1:  # An image of one row.
            x = x.unsqueeze(2)
            stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        if isinstance(lowered, Packed):
            if not plain and needs_gradient(x, lowered):
                raise StrategyError(
                    "strategy='native': packed experts are for inference and have no gradient; run under "
                    "torch.no_grad(), or use strategy='auto'"
                )
            shape = (*lowered.kernel_shape[:2], 1, *lowered.kernel_shape[2:]) if line else lowered.kernel_shape
            y = torch.ops.condconv.conv2d_packed.default(
                x, lowered.coefficients, lowered.packed, lowered.scale, lowered.expert_bias, lowered.shift, shape,
                stride, padding, dilation, geometry.groups, lowered.threshold,
            )  # fmt: skip
            return y.squeeze(2) if line else y
        experts = lowered.experts.unsqueeze(3) if line else lowered.experts
        arguments = x, lowered.coefficients, experts, stride, padding, dilation, geometry.groups
        if plain or not _differentiated(x, lowered):
            # The way to a derivative is Python's, and takes longer than a small convolution.
            with torch._C._AutoDispatchBelowAutograd():
                y = torch.ops.condconv.conv2d.default(*arguments)
        else:
            y = torch.ops.condconv.conv2d.default(*arguments)
        if (bias := lowered.bias) is not None:
            y = y + bias.to(y.dtype).reshape(*bias.shape, 1, 1)
        return y.squeeze(2) if line else y
