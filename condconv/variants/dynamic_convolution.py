"""Dynamic Convolution: every example's kernel is an attention-weighted average of K kernels.

Yinpeng Chen, Xiyang Dai, Mengchen Liu, Dongdong Chen, Lu Yuan, Zicheng Liu: "Dynamic Convolution: Attention over
Convolution Kernels", CVPR 2020, https://arxiv.org/abs/1912.03458.

    y = (π₁ W₁ + … + π_K W_K) * x + Σₖ πₖ bₖ,        π = softmax( W₂ ReLU(W₁ GAP(x)) / T ),   0 ≤ πₖ ≤ 1,  Σₖ πₖ = 1

Defaults: K = 4, reduction 4, an attention for each layer, and T = 30 in a fresh layer. Training needs T annealed to 1
(`RoutingSchedule`): with T = 1 from the start only few kernels learn, and the paper's network falls behind the
static one. Departure: the paper's initialisation is not known; kernels are drawn one by one as torch.nn draws one.
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
from condconv.routers import Router, SqueezeExcite
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants


def _router(site: ConvSite, slices: Slices) -> Router:
    """The paper's router."""
    return SqueezeExcite(site.in_channels, slices.size)


DESIGN = Design(bank=DenseBank, router=_router, num_experts=4)


class DynamicConv1d(ConditionalConv1d):
    """Dynamic Convolution for `nn.Conv1d`: x (B, I, W) → (B, O, W'), kernels (K, O, I/g, kw)."""

    design = DESIGN


class DynamicConv2d(ConditionalConv2d):
    """Dynamic Convolution for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W'), kernels (K, O, I/g, kh, kw).

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: K, 4 where None.
        router: a factory (site, slices) → router; None for `SqueezeExcite`, False for no router, so that
            `forward` must be given coefficients.
        strategy: execution strategy, or "auto".

    >>> layer = DynamicConv2d(16, 32, 3, padding=1)
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


class DynamicConv3d(ConditionalConv3d):
    """Dynamic Convolution for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W'), kernels (K, O, I/g, kd, kh, kw)."""

    design = DESIGN


class DynamicConvTranspose2d(ConditionalConvTranspose2d):
    """Dynamic Convolution for `nn.ConvTranspose2d`: x (B, I, H, W) → (B, O, H', W'), kernels (K, I, O/g, kh, kw)."""

    design = DESIGN


class DynamicLinear(ConditionalLinear):
    """The dynamic perceptron, for `nn.Linear`: x (B, *positions, I) → (B, *positions, O)."""

    design = DESIGN


variants.register(
    "dynamic_convolution",
    Variant(
        name="dynamic_convolution",
        title="Dynamic Convolution: Attention over Convolution Kernels (CVPR 2020)",
        url="https://arxiv.org/abs/1912.03458",
        equation="W(x) = Σₖ softmax(f(GAP(x)) / T)ₖ Wₖ",
        design=DESIGN,
        layers=(DynamicConv1d, DynamicConv2d, DynamicConv3d, DynamicConvTranspose2d, DynamicLinear),
        share=None,
        placement="all_but_first",
    ),
)
