"""Channel scaling: a static convolution whose output channels are scaled for each example.

Jie Hu, Li Shen, Samuel Albanie, Gang Sun, Enhua Wu: "Squeeze-and-Excitation Networks", CVPR 2018,
https://arxiv.org/abs/1709.01507. The baseline beside which per-example kernels have to prove themselves.

    y = α ⊙ (W * x) + b,        α = σ( W₂ ReLU( W₁ GAP(x) ) )

Departure: the factors are computed from the convolution's input, not from its output, and scale each convolution, not
each block; squeeze-and-excitation as published comes with timm's networks (`seresnet50`, `efficientnet_b0`).

Defaults: reduction 16 with at least 8 hidden channels. Linear layers are initialised as all routers here. Upcycling
doubles the kernel, for σ(0) = 1/2, which is exact.
"""

from __future__ import annotations

import torch

from condconv.arguments import integer
from condconv.banks import Bank, ScaledBank, StaticBank
from condconv.coefficients import Slices
from condconv.layers import ConditionalConv1d, ConditionalConv2d, ConditionalConv3d, ConditionalLinear, Design
from condconv.routers import Router, SigmoidGate
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants

SMALLEST_HIDDEN = 8


def _bank(
    site: ConvSite, num_experts: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Bank:
    integer(site.name or "squeeze_excite", "num_experts", num_experts, 1, 1)
    return ScaledBank(site, StaticBank(site, device, dtype), ["output"])


def _router(site: ConvSite, slices: Slices, reduction: int) -> Router:
    hidden = max(site.in_channels // integer("squeeze_excite", "reduction", reduction, 1), SMALLEST_HIDDEN)
    return Router(site.in_channels, slices, hidden_channels=hidden, gate=SigmoidGate())


DESIGN = Design(bank=_bank, router=_router, num_experts=1, options={"reduction": 16})


class SqueezeExciteConv1d(ConditionalConv1d):
    """Channel scaling for `nn.Conv1d`: x (B, I, W) → (B, O, W')."""

    design = DESIGN


class SqueezeExciteConv2d(ConditionalConv2d):
    """Channel scaling for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W').

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: 1, for there is one kernel.
        router: a factory (site, slices) → router; None for the paper's, False for no router, so that `forward` must be
            given coefficients.
        strategy: execution strategy, or "auto".
        reduction: divides I to the width of the router's hidden layer.

    >>> layer = SqueezeExciteConv2d(16, 32, 3, padding=1)
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


class SqueezeExciteConv3d(ConditionalConv3d):
    """Channel scaling for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W')."""

    design = DESIGN


class SqueezeExciteLinear(ConditionalLinear):
    """Channel scaling for `nn.Linear`: x (B, *positions, I) → (B, *positions, O)."""

    design = DESIGN


variants.register(
    "squeeze_excite",
    Variant(
        name="squeeze_excite",
        title="Squeeze-and-Excitation Networks (CVPR 2018)",
        url="https://arxiv.org/abs/1709.01507",
        equation="y = σ(f(GAP(x))) ⊙ (W * x)",
        design=DESIGN,
        layers=(SqueezeExciteConv1d, SqueezeExciteConv2d, SqueezeExciteConv3d, SqueezeExciteLinear),
        share=None,
        placement="all_but_first",
    ),
)
