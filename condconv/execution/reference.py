"""The reference: a loop over the examples. Slow and obvious; it defines what every other strategy must compute."""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.execution.closed_forms import mixed_kernel_macs
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, kernels_of


class Reference:
    """Convolve each example by itself with its own kernel."""

    name = "reference"
    macs = staticmethod(mixed_kernel_macs)
    adds_bias = False

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None: it always can."""
        return None

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, *space) of x (B, I, *space), bias left out."""
        kernels = kernels_of(lowered, x.dtype)
        return torch.cat([geometry.convolve(x[b : b + 1], kernels[b]) for b in range(x.shape[0])])
