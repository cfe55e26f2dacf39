"""The seam between banks and execution strategies: what a convolution with per-example kernels is made of.

A bank lowers its parameters to one of three forms, and a strategy needs to know nothing else:

* `Mixture`: n experts and each example's mixing weights, not yet mixed: W(x) = Σᵢ αᵢ(x) Wᵢ;
* `Packed`: the same with experts as an inference form stores them (`condconv.packed`);
* `Kernels`: one dense kernel for each example.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from condconv.packed import unpack


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
    """The experts in the layout of `condconv.packed`, 1-D, f32, bf16 or int8."""
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

    def mix(self) -> Tensor:
        """Return each example's kernel, (B, *kernel_shape) f32: unpack, then n·|W| multiply-adds for each example."""
        experts = unpack(self.packed, self.scale, self.kernel_shape, self.groups)
        return torch.mm(self.used_coefficients, experts.float().flatten(1)).unflatten(1, self.kernel_shape)


Lowered = Mixture | Packed | Kernels

Unmixed = TypeVar("Unmixed", Mixture, Packed)


def kernels_of(lowered: Lowered, dtype: torch.dtype) -> Tensor:
    """Return each example's dense kernel, (B, *kernel_shape), mixing it first where that is still to be done.

    `dtype` is that of the image: packed experts are mixed in f32 and then rounded to it.
    """
    if isinstance(lowered, Kernels):
        return lowered.weight
    return lowered.mix().to(dtype) if isinstance(lowered, Packed) else lowered.mix()


def as_pointwise(lowered: Unmixed) -> Unmixed:
    """Turn matrices (O, I) into the kernels (O, I, 1) of a pointwise convolution along one dimension."""
    if isinstance(lowered, Packed):
        return lowered._replace(kernel_shape=(*lowered.kernel_shape, 1))
    return lowered._replace(experts=lowered.experts.unsqueeze(3))
