"""Factors around a convolution: on the maps or on the kernels, whichever are fewer multiply-adds.

    y = output ⊙ ((taps ⊙ W(x)) * (input ⊙ x)) + E Φ(x) R x

What is left to a strategy is the *core*: the inner form where all else is done on the maps, so that experts stay
unmixed and one static kernel serves the whole batch; otherwise one kernel for each example. Factors of taps can only be
multiplied into kernels. The residual is two static matrices and a small one for each example on the maps, where its tap
meets every position that the stride picks; or a sum of kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from condconv.execution.closed_forms import mixed_kernel_macs
from condconv.geometry import ConvGeometry
from condconv.lowered import (
    Kernels,
    Lowered,
    LowRank,
    Mixture,
    Packed,
    Scaled,
    add_low_rank,
    kernels_of,
    matrix_macs,
    on_maps_macs,
    scale,
)


class Placement(NamedTuple):
    """What is multiplied into a kernel for each example, for which kernels have to be made; the rest is on the maps."""

    kernels: bool
    input: bool
    output: bool
    residual: bool


def place(input_size: Sequence[int], lowered: Scaled, geometry: ConvGeometry) -> Placement:
    """Return where the factors go for x (B, I, *input_size)."""
    shape = lowered.kernel_shape
    elements, positions = math.prod(shape), math.prod(geometry.output_size(input_size, shape[2:]))
    output = geometry.out_channels(shape) * positions if lowered.output is not None else 0
    if lowered.residual is not None:
        on_kernels = matrix_macs(*lowered.residual.sizes) + (elements if output else 0)
        on_maps = on_maps_macs(*lowered.residual.sizes, positions) + output
        if not _meets_all(lowered.residual, geometry, shape) or on_kernels < on_maps:
            return Placement(True, True, True, True)
    if lowered.taps is None:
        return Placement(False, False, False, False)
    inputs = geometry.in_channels(shape) * math.prod(input_size)
    return Placement(True, elements <= inputs, elements <= output, False)


def core_form(x: Tensor, lowered: Scaled, geometry: ConvGeometry) -> Lowered:
    """Return what a strategy will be handed, with made-up values: to ask it whether it can serve."""
    if not place(x.shape[2:], lowered, geometry).kernels:
        return lowered.inner
    return Kernels(x.new_empty(()).expand(x.shape[0], *lowered.kernel_shape), None)


def convolve(
    x: Tensor, lowered: Scaled, geometry: ConvGeometry, strategy: Callable[[Tensor, Lowered, ConvGeometry], Tensor]
) -> Tensor:
    """Return y (B, O, *space) of x (B, I, *space), the core by a strategy, bias left out."""
    where = place(x.shape[2:], lowered, geometry)
    core: Lowered = lowered.inner
    if where.kernels:
        input, output = lowered.input if where.input else None, lowered.output if where.output else None
        kernels = scale(kernels_of(lowered.inner, x.dtype), input, output, lowered.taps)
        if where.residual and lowered.residual is not None:
            kernels = add_low_rank(kernels, lowered.residual)
        core = Kernels(kernels, None)
    y = strategy(x if where.input else _times(x, lowered.input), core, geometry)
    y = y if where.output else _times(y, lowered.output)
    if lowered.residual is not None and not where.residual:
        y = y + _residual(x, lowered.residual, geometry).to(y.dtype)
    return y


def macs(strategy: Any, input_shape: Sequence[int], lowered: Scaled, geometry: ConvGeometry) -> tuple[int, int]:
    """Return the multiply-adds (mixing and factors, convolution) of `convolve` for x of shape (B, I, *space)."""
    size, shape, inner = input_shape[2:], lowered.kernel_shape, lowered.inner
    where, elements = place(size, lowered, geometry), math.prod(shape)
    positions = math.prod(geometry.output_size(size, shape[2:]))
    core: Lowered = inner
    mixing = factors = 0
    if where.kernels:
        core = Kernels(torch.empty((), device="meta").expand(input_shape[0], *shape), None)
        mixing, _ = mixed_kernel_macs(inner, geometry, size)
        factors += elements if lowered.taps is not None else 0
    if lowered.input is not None:
        factors += elements if where.input else geometry.in_channels(shape) * math.prod(size)
    if lowered.output is not None:
        factors += elements if where.output else geometry.out_channels(shape) * positions
    if lowered.residual is not None:
        sizes = lowered.residual.sizes
        factors += matrix_macs(*sizes) if where.residual else on_maps_macs(*sizes, positions)
    if lowered.bias is not None and isinstance(inner, Mixture | Packed):
        factors += inner.num_experts * geometry.out_channels(shape)
    mixing_of_core, convolution = strategy.macs(core, geometry, size)
    return mixing + mixing_of_core + input_shape[0] * factors, convolution


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply the channels of x (B, C, *space) by (B, C)."""
    return x if factor is None else x * factor.to(x.dtype).reshape(*factor.shape, *[1] * (x.dim() - 2))


def _residual(x: Tensor, residual: LowRank, geometry: ConvGeometry) -> Tensor:
    """E Φ R x at the positions that the stride picks: x (B, I, *space) → (B, O, *space')."""
    picked = geometry.pick(x)
    reduced = F.linear(picked.flatten(2).transpose(1, 2), residual.reduce)  # B P L
    mixed = torch.bmm(reduced, residual.core.to(reduced.dtype).transpose(1, 2))  # B P L
    return F.linear(mixed, residual.expand).transpose(1, 2).unflatten(2, picked.shape[2:])


def _meets_all(residual: LowRank, geometry: ConvGeometry, kernel_shape: Sequence[int]) -> bool:
    """Whether the tap of a residual lies on position s·p of x for each output position p."""
    sides = zip(kernel_shape[2:], residual.tap, geometry.padding, geometry.dilation, strict=True)
    return all(t * d == p and 2 * p == d * (k - 1) for k, t, p, d in sides)
