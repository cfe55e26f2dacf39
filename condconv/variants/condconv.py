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

from condconv.layers import (
    ConditionalConv1d,
    ConditionalConv2d,
    ConditionalConv3d,
    ConditionalConvTranspose2d,
    ConditionalLinear,
)
from condconv.routers import PooledLinear, Router
from condconv.variants.base import Variant, variants


class _CondConv:
    """The paper's defaults, for all of its layers."""

    default_num_experts = 8

    @staticmethod
    def default_router(in_channels: int, num_experts: int) -> Router:
        """Return the paper's router."""
        return PooledLinear(in_channels, num_experts)


class CondConv1d(_CondConv, ConditionalConv1d):
    """CondConv for `nn.Conv1d`: x (B, I, W) → (B, O, W'), experts (n, O, I/g, kw)."""


class CondConv2d(_CondConv, ConditionalConv2d):
    """CondConv for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W'), experts (n, O, I/g, kh, kw).

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: n, 8 where None.
        router: a factory (in_channels, num_experts) → router; None for `PooledLinear`, False for no router, so that
            `forward` must be given coefficients.
        strategy: execution strategy, or "auto".

    >>> layer = CondConv2d(16, 32, 3, padding=1, num_experts=4)
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """


class CondConv3d(_CondConv, ConditionalConv3d):
    """CondConv for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W'), experts (n, O, I/g, kd, kh, kw)."""


class CondConvTranspose2d(_CondConv, ConditionalConvTranspose2d):
    """CondConv for `nn.ConvTranspose2d`: x (B, I, H, W) → (B, O, H', W'), experts (n, I, O/g, kh, kw)."""


class CondLinear(_CondConv, ConditionalLinear):
    """CondConv for `nn.Linear`, as in the paper's classifiers: x (B, *positions, I) → (B, *positions, O)."""


variants.register(
    "condconv",
    Variant(
        name="condconv",
        title="CondConv: Conditionally Parameterized Convolutions for Efficient Inference (NeurIPS 2019)",
        url="https://arxiv.org/abs/1904.04971",
        equation="W(x) = Σᵢ σ(GAP(x) R)ᵢ Wᵢ",
        layers=(CondConv1d, CondConv2d, CondConv3d, CondConvTranspose2d, CondLinear),
        share="block",
        placement="second_half",
    ),
)
