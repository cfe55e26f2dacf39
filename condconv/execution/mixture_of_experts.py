"""The experts' outputs mixed in the place of their kernels: y = Σᵢ αᵢ (Wᵢ * x) (CondConv, figure 1b).

Equal by linearity. n convolutions of the whole batch, and no kernel is ever mixed: worth it for one expert.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.execution.closed_forms import mixed_output_macs
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, Mixture, Packed


class MixtureOfExperts:
    """Sum of n static convolutions, each scaled by its coefficient."""

    name = "mixture_of_experts"
    macs = staticmethod(mixed_output_macs)
    adds_bias = False

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None."""
        if isinstance(lowered, Packed):
            return "the experts are packed, and it needs each of them as a kernel"
        return None if isinstance(lowered, Mixture) else "the kernels are already mixed; it needs scalar mixing weights"

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, *space) of x (B, I, *space), bias left out."""
        assert isinstance(lowered, Mixture)
        # f32 at least: n rounded outputs summed in bf16 would lose more than mixing n kernels does.
        total, dtype = None, x.dtype
        for i, expert in enumerate(lowered.experts):
            output = geometry.convolve(x, expert)
            dtype, accumulator = output.dtype, torch.promote_types(output.dtype, torch.float32)
            scale = lowered.coefficients[:, i].to(accumulator).reshape(-1, *[1] * (geometry.rank + 1))
            scaled = output.to(accumulator) * scale
            total = scaled if total is None else total + scaled
        assert total is not None
        return total.to(dtype)
