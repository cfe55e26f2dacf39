"""Exact upcycling: experts that together are the static kernel, until training tells them apart.

With a router whose last layer is zero every example gets the same coefficients α, equal for all experts, and

    Σᵢ α Wᵢ = W   for   Wᵢ = c (W + δᵢ),   Σᵢ δᵢ = 0,   c = 1 / Σᵢ α

so c = 1 for a softmax at any temperature and 2/n for a sigmoid; biases are c·b. The δᵢ break the symmetry: with equal
experts a softmax router gets no gradient at all, and behind batch norm (where ⟨∂L/∂W, W⟩ = 0) no router gets any.

How large? Each δᵢ has half the standard deviation of the layer's kernel, so that two experts' kernels correlate with
1 / (1 + ¼) = 0.8: far enough apart for the router's gradient ⟨∂L/∂W, δᵢ⟩ to be of the size of a weight gradient, near
enough that coefficients which move by 10 % move an eight-expert kernel by under 4 % of its norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from condconv.errors import ConversionError
from condconv.routers import Router

RELATIVE_SCALE = 0.5
"""Standard deviation of δ, relative to the kernel's own."""


def constant_scale(router: Router, where: str) -> float:
    """Set the router's last layer to zero and return c = 1 / Σα.

    Raises:
        ConversionError: its gate does not give all experts the same coefficient (top-k).
    """
    router.reset_to_constant()
    if router.body[-1].weight.is_meta:
        return 1.0
    coefficients = router.constant_coefficients().double()
    if not bool((coefficients == coefficients[0]).all()) or not float(coefficients[0]) > 0:
        raise ConversionError(
            f"{where}: init='upcycle' needs a gate that gives every expert the same coefficient for zero logits, and "
            f"{type(router.gate).__name__} does not; upcycle with its inner gate and add the top-k gate after training "
            "has begun, or use init='fresh'"
        )
    return 1.0 / float(coefficients.sum())


@torch.no_grad()
def upcycle_experts(
    experts: Tensor, bias: Tensor | None, weight: Tensor, static_bias: Tensor | None, scale: float
) -> None:
    """Fill experts (n, *kernel) and bias (n, O) from a static kernel and bias; `scale` is c."""
    # In f64, so that rounding to the parameters' dtype happens once.
    kernel = weight.detach().double()
    experts.copy_(scale * (kernel + _differences(len(experts), kernel)))
    if bias is not None and static_bias is not None:
        bias.copy_(scale * static_bias.detach().double().expand_as(bias))


def _differences(n: int, kernel: Tensor) -> Tensor:
    """Return δ (n, *kernel): random, summing to zero over the experts; zero for one expert."""
    if n == 1 or kernel.is_meta:
        return kernel.new_zeros((n, *kernel.shape))
    spread = float(kernel.std(correction=0))
    if spread == 0:
        # A constant kernel: its own size, or for an all-zero one that of a freshly drawn kernel.
        spread = float(kernel.abs().mean()) or 1 / math.sqrt(max(1, math.prod(kernel.shape[1:])))
    delta = torch.randn((n, *kernel.shape), dtype=kernel.dtype, device=kernel.device)
    delta -= delta.mean(dim=0)
    # Taking the mean off has shrunk the standard deviation by √((n − 1) / n).
    return delta * (RELATIVE_SCALE * spread * math.sqrt(n / (n - 1)))
