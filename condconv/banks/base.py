"""What all banks share: coefficients → lowered form, and the collapse to one kernel."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from condconv.lowered import Mixture, Packed


class Bank(nn.Module):
    """n kernels with scalar mixing weights.

    A bank has `weight` (n, *kernel), `bias` (n, O) or None, `num_experts` n and `kernel_shape`.
    """

    def forward(self, coefficients: Tensor) -> Mixture | Packed:
        """Return the lowered form for coefficients (B, n)."""
        raise NotImplementedError

    @torch.no_grad()
    def collapse(self, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the one kernel and bias that fixed coefficients (n,) mix."""
        device = next(itertools.chain(self.parameters(), self.buffers())).device
        lowered = self(coefficients.unsqueeze(0).to(device))
        bias = lowered.bias
        return lowered.mix()[0], None if bias is None else bias[0]
