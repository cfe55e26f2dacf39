"""CondConv: every example's kernel is a sigmoid-weighted sum of n experts.

Brandon Yang, Gabriel Bender, Quoc V. Le, Jiquan Ngiam: "CondConv: Conditionally Parameterized Convolutions for
Efficient Inference", NeurIPS 2019, https://arxiv.org/abs/1904.04971.

    y = (α₁ W₁ + … + αₙ Wₙ) * x,        α = r(x) = σ( GAP(x) R )        (equations 1 and 2)

Defaults: n = 8, a router with bias as in the authors' code, one router for each block. The coefficients are not
normalised: they start near 1/2 and sum to about n/2, which batch normalisation absorbs. Each expert is initialised by
itself on the shape of the kernel that it replaces. Departure from the paper: none known; the optional hidden layer,
softmax, hierarchical and shared routing of its ablations are options of `PooledLinear` and of conversion.
"""

from __future__ import annotations

from condconv.banks import DenseBank
from condconv.coefficients import Slices
from condconv.layers import (
    ConditionalConv1d,
    ConditionalConv2d,
    ConditionalConv3d,
    ConditionalConvTranspose2d,
    ConditionalLinear,
    Design,
)
from condconv.routers import PooledLinear, Router
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants


def _router(site: ConvSite, slices: Slices) -> Router:
    """The paper's router."""
    return PooledLinear(site.in_channels, slices.size)


DESIGN = Design(bank=DenseBank, router=_router, num_experts=8)


class CondConv1d(ConditionalConv1d):
    """CondConv for `nn.Conv1d`: x (B, I, W) → (B, O, W'), experts (n, O, I/g, kw)."""

    design = DESIGN


class CondConv2d(ConditionalConv2d):
    """CondConv for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W'), experts (n, O, I/g, kh, kw).

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: n, 8 where None.
        router: a factory (site, slices) → router; None for `PooledLinear`, False for no router, so that
            `forward` must be given coefficients.
        strategy: execution strategy, or "auto".

    >>> layer = CondConv2d(16, 32, 3, padding=1, num_experts=4)
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


class CondConv3d(ConditionalConv3d):
    """CondConv for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W'), experts (n, O, I/g, kd, kh, kw)."""

    design = DESIGN


class CondConvTranspose2d(ConditionalConvTranspose2d):
    """CondConv for `nn.ConvTranspose2d`: x (B, I, H, W) → (B, O, H', W'), experts (n, I, O/g, kh, kw)."""

    design = DESIGN


class CondLinear(ConditionalLinear):
    """CondConv for `nn.Linear`, as in the paper's classifiers: x (B, *positions, I) → (B, *positions, O)."""

    design = DESIGN


variants.register(
    "condconv",
    Variant(
        name="condconv",
        title="CondConv: Conditionally Parameterized Convolutions for Efficient Inference (NeurIPS 2019)",
        url="https://arxiv.org/abs/1904.04971",
        equation="W(x) = Σᵢ σ(GAP(x) R)ᵢ Wᵢ",
        design=DESIGN,
        layers=(CondConv1d, CondConv2d, CondConv3d, CondConvTranspose2d, CondLinear),
        share="block",
        placement="second_half",
    ),
)
