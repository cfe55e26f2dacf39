"""The seam between banks and execution strategies: what a convolution with per-example kernels is made of.

A bank lowers its parameters to one of these forms, and a strategy needs to know nothing else:

* `Mixture`: n experts and each example's mixing weights, not yet mixed: W(x) = Σᵢ αᵢ(x) Wᵢ;
* `Packed`: the same with experts as an inference form stores them (`condconv.packing`);
* `Cells`: kernels cut into cells of one size, each of them mixed from the same n cells;
* `Blocks`: kernels with a weight for each output channel and block of input channels;
* `Spectrum`: kernels from the weighted parts of one spectrum;
* `Kernels`: one dense kernel for each example;
* `Static`: one kernel for all examples;
* `Scaled`: one of these between factors of its input channels, output channels and taps, plus a low-rank residual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condconv import packing
from condconv.assembled import Assembled, Cells


class Kernels(NamedTuple):
    """One kernel for each example."""

    weight: Tensor
    """(B, O, I/g, *k), or (B, I, O/g, *k) for a transposed convolution."""
    bias: Tensor | None
    """(B, O) or None."""

    @property
    def form(self) -> tuple[object, ...]:
        """What a strategy may be chosen by, beside the image and the geometry: shapes and types, no values."""
        return "kernels", self.weight.shape, self.weight.dtype

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one example's kernel."""
        return tuple(self.weight.shape[1:])

    def without_bias(self) -> Kernels:
        """The same with no bias."""
        return self._replace(bias=None)

    def keeping(self, keep: Keeper) -> Kernels:
        """The same: what the bank has made is not kept."""
        return self


class Mixture(NamedTuple):
    """Experts with scalar mixing weights: example b's kernel is Σᵢ coefficients[b, i] · experts[i]."""

    coefficients: Tensor
    """(B, n)."""
    experts: Tensor
    """(n, O, I/g, *k), or (n, I, O/g, *k) for a transposed convolution."""
    expert_bias: Tensor | None
    """(n, O) or None; mixed with the same coefficients."""

    @property
    def form(self) -> tuple[object, ...]:
        """What a strategy may be chosen by, beside the image and the geometry: shapes and types, no values."""
        return self.experts.shape, self.experts.dtype

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return self.experts.shape[0]

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one expert."""
        return tuple(self.experts.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """Each example's bias, (B, O), or None."""
        if self.expert_bias is None:
            return None
        return torch.mm(self.coefficients.to(self.expert_bias.dtype), self.expert_bias)

    def without_bias(self) -> Mixture:
        """The same with no bias."""
        return self._replace(expert_bias=None)

    def keeping(self, keep: Keeper) -> Lowered:
        """What `keep` makes of it: the kernels of an earlier call, where they still serve."""
        return keep(self)

    def mix(self) -> Tensor:
        """Return each example's kernel, (B, *kernel_shape): n·|W| multiply-adds for each example.

        Under autocast what is fewer is rounded: the experts, or the kernels of a batch smaller than their number.
        """
        coefficients, experts = self.coefficients.to(self.experts.dtype), self.experts.flatten(1)
        device = experts.device.type
        if device != "meta" and torch.is_autocast_enabled(device) and coefficients.shape[0] < self.num_experts:
            with torch.autocast(device, enabled=False):
                mixed = torch.mm(coefficients, experts)
        else:
            mixed = torch.mm(coefficients, experts)
        return mixed.unflatten(1, self.kernel_shape)


class Packed(NamedTuple):
    """Packed experts with scalar mixing weights, for inference: example b's kernel is Σᵢ coefficients[b, i] · Wᵢ."""

    coefficients: Tensor
    """(B, n)."""
    packed: Tensor
    """The experts in the layout of `condconv.packing`, 1-D, f32, bf16 or int8."""
    scale: Tensor | None
    """(n, padded columns) f32 for int8 experts, else None."""
    expert_bias: Tensor | None
    """(n, O) f32 or None; mixed with the same coefficients."""
    shift: Tensor | None
    """(O,) f32 or None: what is left of a folded batch norm, added to every example as it is."""
    kernel_shape: tuple[int, ...]
    """Shape of one expert: (O, I/g, *k), or (I, O/g, *k) for a transposed convolution."""
    groups: int
    threshold: float
    """Experts with |coefficient| <= threshold are left out. That drops a NaN or infinite expert's effect as well."""

    @property
    def form(self) -> tuple[object, ...]:
        """What a strategy may be chosen by, beside the image and the geometry: shapes and types, no values."""
        return "packed", self.packed.shape, self.packed.dtype, self.kernel_shape

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return self.coefficients.shape[1]

    @property
    def used_coefficients(self) -> Tensor:
        """The coefficients (B, n) in f32, zero where an expert is left out."""
        coefficients = self.coefficients.float()
        if self.threshold == 0:
            return coefficients
        return coefficients.masked_fill(coefficients.abs() <= self.threshold, 0.0)

    @property
    def bias(self) -> Tensor | None:
        """Each example's bias, (B, O) f32, or None; a view of `shift` where no bias has to be mixed."""
        if self.expert_bias is None:
            return None if self.shift is None else self.shift.expand(self.coefficients.shape[0], -1)
        mixed = torch.mm(self.used_coefficients, self.expert_bias)
        return mixed if self.shift is None else mixed + self.shift

    def without_bias(self) -> Packed:
        """The same with no bias."""
        return self._replace(expert_bias=None, shift=None)

    def keeping(self, keep: Keeper) -> Lowered:
        """What `keep` makes of it: the kernels of an earlier call, where they still serve."""
        return keep(self)

    def mix(self) -> Tensor:
        """Return each example's kernel, (B, *kernel_shape) f32: n·|W| multiply-adds for each, blocks filled up."""
        return packing.mix(self.packed, self.scale, self.used_coefficients, self.kernel_shape, self.groups)


class Static(NamedTuple):
    """One kernel for all examples, to be scaled."""

    weight: Tensor
    """(O, I/g, *k)."""
    bias: Tensor | None
    """(1, O) or None."""
    batch: int
    """B."""

    @property
    def form(self) -> tuple[object, ...]:
        """What a strategy may be chosen by, beside the image and the geometry: shapes and types, no values."""
        return "static", self.weight.shape, self.weight.dtype

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return tuple(self.weight.shape)

    def without_bias(self) -> Static:
        """The same with no bias."""
        return self._replace(bias=None)

    def keeping(self, keep: Keeper) -> Static:
        """The same: nothing is mixed."""
        return self


class LowRank(NamedTuple):
    """A matrix of rank L for each example, E Φ(x) R, on one tap of the kernel (DCD, equation 5)."""

    reduce: Tensor
    """R, (L, I)."""
    core: Tensor
    """Φ, (B, L, L)."""
    expand: Tensor
    """E, (O, L)."""
    tap: tuple[int, ...]
    """Index of the tap, one number for each spatial dimension; () for a linear layer."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(L, I, O)."""
        return *self.reduce.shape, self.expand.shape[0]

    def matrices(self) -> Tensor:
        """Return E Φ R, (B, O, I): L·I·(L + O) multiply-adds for each example."""
        return torch.matmul(self.expand, torch.matmul(self.core.to(self.reduce.dtype), self.reduce))


class Scaled(NamedTuple):
    """Factors around a convolution: y = output ⊙ ((taps ⊙ W(x)) * (input ⊙ x)) + E Φ(x) R x + bias.

    The factors are those of each example; None is 1. The kernel is not transposed.
    """

    inner: Mixture | Packed | Assembled | Kernels | Static
    """W(x), without a bias."""
    input: Tensor | None
    """(B, I) or None."""
    output: Tensor | None
    """(B, O) or None."""
    taps: Tensor | None
    """(B, K) or None, K the number of kernel positions, row by row."""
    residual: LowRank | None
    bias: Tensor | None
    """(B, O), (1, O) or None; added last."""

    @property
    def form(self) -> tuple[object, ...]:
        """What a strategy may be chosen by, beside the image and the geometry: shapes and types, no values."""
        there = tuple(part is not None for part in (self.input, self.output, self.taps))
        return "scaled", self.inner.form, there, None if self.residual is None else self.residual.reduce.shape

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one kernel."""
        return self.inner.kernel_shape

    def without_bias(self) -> Scaled:
        """The same with no bias."""
        return self._replace(bias=None)

    def keeping(self, keep: Keeper) -> Scaled:
        """The same with kernels of an earlier call between the factors, where they still serve."""
        inner: Any = self.inner.keeping(keep)
        return self._replace(inner=inner)


Lowered = Mixture | Packed | Assembled | Kernels | Static | Scaled

Mixed = Mixture | Packed | Assembled
"""What has still to be mixed."""

Keeper = Callable[[Mixed], Kernels | Mixed]
"""Given what is to be mixed, returns kernels that were mixed before, or it."""


def matrix_macs(rank: int, inputs: int, outputs: int) -> int:
    """Multiply-adds of making one example's matrix E Φ R."""
    return rank * inputs * (rank + outputs)


def on_maps_macs(rank: int, inputs: int, outputs: int, positions: int) -> int:
    """Multiply-adds of applying R, Φ and E to each position of one example's map."""
    return positions * rank * (inputs + rank + outputs)


def tensors(lowered: Any) -> Iterator[Tensor]:
    """Yield the tensors among the parts of a lowered form, and of the forms inside it."""
    for part in lowered:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple):
            yield from tensors(part)


def kernels_of(lowered: Lowered, dtype: torch.dtype) -> Tensor:
    """Return each example's dense kernel, (B, *kernel_shape), mixing it first where that is still to be done.

    `dtype` is that of the image: packed experts are mixed in f32 and then rounded to it.
    """
    if isinstance(lowered, Mixture | Assembled):
        return lowered.mix()
    if isinstance(lowered, Kernels):
        return lowered.weight
    if isinstance(lowered, Static):
        return lowered.weight.expand(lowered.batch, *lowered.kernel_shape)
    if isinstance(lowered, Scaled):
        kernels = scale(kernels_of(lowered.inner, dtype), lowered.input, lowered.output, lowered.taps)
        return kernels if lowered.residual is None else add_low_rank(kernels, lowered.residual)
    return lowered.mix().to(dtype)


def scale(kernels: Tensor, input: Tensor | None, output: Tensor | None, taps: Tensor | None) -> Tensor:
    """Multiply kernels (B, O, I/g, *k) by factors of input channels (B, I), output channels (B, O), taps (B, K)."""
    space = kernels.shape[3:]
    if taps is not None:
        kernels = kernels * taps.to(kernels.dtype).unflatten(1, (1, 1, *space))
    if input is not None:
        groups = input.shape[1] // kernels.shape[2]
        by_group = input.to(kernels.dtype).unflatten(1, (groups, 1, kernels.shape[2], *[1] * len(space)))  # B g 1 I/g
        kernels = (kernels.unflatten(1, (groups, kernels.shape[1] // groups)) * by_group).flatten(1, 2)
    if output is not None:
        kernels = kernels * output.to(kernels.dtype).reshape(*output.shape, 1, *[1] * len(space))
    return kernels


def add_low_rank(kernels: Tensor, residual: LowRank) -> Tensor:
    """Add matrices (B, O, I) to one tap of kernels (B, O, I, *k)."""
    matrices = residual.matrices().to(kernels.dtype)
    if not residual.tap:
        return kernels + matrices
    space = kernels.shape[3:]
    at = 0
    for index, size in zip(residual.tap, space, strict=True):
        at = at * size + index
    around = (at, math.prod(space) - 1 - at)
    return kernels + torch.nn.functional.pad(matrices.unsqueeze(3), around).reshape(*matrices.shape, *space)


def as_pointwise(lowered: Any) -> Any:
    """Turn matrices (O, I) into the kernels (O, I, 1) of a pointwise convolution along one dimension."""
    if isinstance(lowered, Mixture):
        return lowered._replace(experts=lowered.experts.unsqueeze(3))
    if isinstance(lowered, Packed | Cells):
        return lowered._replace(kernel_shape=(*lowered.kernel_shape, 1))
    if isinstance(lowered, Scaled):
        residual = None if lowered.residual is None else lowered.residual._replace(tap=(0,))
        return lowered._replace(inner=as_pointwise(lowered.inner), residual=residual)
    return lowered._replace(weight=lowered.weight.unsqueeze(-1))
