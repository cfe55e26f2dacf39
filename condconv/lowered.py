"""The seam between banks and execution strategies: what a convolution with per-example kernels is made of.

A bank lowers its parameters to one of two forms, and a strategy needs to know nothing else:

* `Mixture`: n experts and each example's mixing weights, not yet mixed: W(x) = Σᵢ αᵢ(x) Wᵢ;
* `Kernels`: one dense kernel for each example.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Kernels(NamedTuple):
    """One kernel for each example."""

    weight: Tensor
    """(B, O, I/g, *k), or (B, I, O/g, *k) for a transposed convolution."""
    bias: Tensor | None
    """(B, O) or None."""

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
        """Return each example's kernel, (B, *kernel_shape): n·|W| multiply-adds for each example."""
        mixed = torch.mm(self.coefficients.to(self.experts.dtype), self.experts.flatten(1))
        return mixed.unflatten(1, self.kernel_shape)


Lowered = Mixture | Kernels


def kernels_of(lowered: Lowered) -> Tensor:
    """Return each example's dense kernel, (B, *kernel_shape), mixing it first where that is still to be done."""
    return lowered.mix() if isinstance(lowered, Mixture) else lowered.weight
