"""ODConv: attention over all four dimensions of the kernel space.

Chao Li, Aojun Zhou, Anbang Yao: "Omni-Dimensional Dynamic Convolution", ICLR 2022, https://arxiv.org/abs/2209.07947;
authors' code OSVAI/ODConv.

    y = α_f ⊙ ((α_s ⊙ Σᵢ α_wᵢ Wᵢ) * (α_c ⊙ x)) + Σᵢ α_wᵢ bᵢ

with factors α_c of the input channels ("input"), α_f of the output channels ("output"), α_s of the kernel positions
("taps"), and weights α_w of the n kernels ("mixing"). As in the code, and as the published parameters are counted, the
first three are shared by all kernels; the equation as printed would have one of each for every kernel.

    z = head( ReLU( BN( W GAP(x) ) ) ),   α_c, α_f, α_s = σ(z / T),   α_w = softmax(z / T),   one T for all: 30 → 1

The hidden layer has max(⌊I / reduction⌋, 16) channels. Left out: α_s where the kernel has one position, α_w where
n = 1, α_f where the layer is depthwise. With n = 1 and one position no kernel is made for any example.

Initialisation: each kernel normal with variance 2 / (k² O), the router's linear layers with variance 2 / fan-out and
zero bias. Upcycling divides the kernel by what the gates give for zero logits (1/4 or 1/8), which is exact.
Departures: the layers here may have biases; T is saved with the weights; `norm="layer"` and `norm=None` train with a
batch of one example, which the paper's batch norm cannot.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from condconv.arguments import integer
from condconv.banks import Bank, DenseBank, ScaledBank, StaticBank
from condconv.coefficients import MIXING, Slices
from condconv.layers import ConditionalConv1d, ConditionalConv2d, ConditionalConv3d, Design
from condconv.routers import AnnealedGate, Router
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants

SMALLEST_HIDDEN = 16


class OmniGate(AnnealedGate):
    """σ(z / T) of the factors, softmax(z / T) of the mixing weights, which come last.

    Args:
        mixing: how many mixing weights there are, 0 for none.
    """

    renormalises = True
    start, end, least = 30.0, 1.0, 1e-30
    called, buffer = "temperature", "temperature"
    temperature: Tensor

    def __init__(self, mixing: int) -> None:
        super().__init__(self.start)
        self.mixing = mixing

    def forward(self, logits: Tensor) -> Tensor:
        """Return the coefficients (B, D) of logits (B, D)."""
        self.notice()
        z = logits / self.temperature.to(logits.dtype)
        if not self.mixing:
            return torch.sigmoid(z)
        return torch.cat([torch.sigmoid(z[:, : -self.mixing]), torch.softmax(z[:, -self.mixing :], dim=1)], dim=1)


class OmniRouter(Router):
    """Pooling, a hidden layer with its norm, and a head for each slice; the heads are one linear layer."""

    def reset_parameters(self) -> None:
        """Draw each head by itself, normal with variance 2 / its outputs; zero biases."""
        first, heads = self._linears
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        if first.bias is not None:
            nn.init.zeros_(first.bias)
        for part in self.slices.parts:
            head = heads.weight[self.slices.span(part.name)]
            nn.init.kaiming_normal_(head, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(heads.bias)


def _bank(
    site: ConvSite, num_experts: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Bank:
    inner: Bank = StaticBank(site, device, dtype) if num_experts == 1 else DenseBank(site, num_experts, device, dtype)
    inner.draw(partial(nn.init.normal_, std=math.sqrt(2 / (site.taps * site.out_channels))), nn.init.zeros_)
    there = {"input": True, "output": not site.depthwise, "taps": site.taps > 1}
    return ScaledBank(site, inner, [name for name in there if there[name]])


def _router(site: ConvSite, slices: Slices, reduction: int, norm: Literal["batch", "layer"] | None) -> Router:
    hidden = max(site.in_channels // integer("ODConv", "reduction", reduction, 1), SMALLEST_HIDDEN)
    gate = OmniGate(slices.length(MIXING))
    return OmniRouter(site.in_channels, slices, hidden_channels=hidden, gate=gate, norm=norm)


DESIGN = Design(bank=_bank, router=_router, num_experts=1, options={"reduction": 16, "norm": "batch"})


class ODConv1d(ConditionalConv1d):
    """ODConv for `nn.Conv1d`: x (B, I, W) → (B, O, W')."""

    design = DESIGN


class ODConv2d(ConditionalConv2d):
    """ODConv for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W').

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: n, 1 where None.
        router: a factory (site, slices) → router; None for the paper's, False for no router, so that `forward` must be
            given coefficients.
        strategy: execution strategy, or "auto".
        reduction: divides I to the width of the router's hidden layer.
        norm: of the hidden layer: "batch", "layer" or None.

    >>> layer = ODConv2d(16, 32, 3, padding=1, norm="layer")
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


class ODConv3d(ConditionalConv3d):
    """ODConv for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W')."""

    design = DESIGN


variants.register(
    "odconv",
    Variant(
        name="odconv",
        title="Omni-Dimensional Dynamic Convolution (ICLR 2022)",
        url="https://arxiv.org/abs/2209.07947",
        equation="y = α_f ⊙ ((α_s ⊙ Σᵢ α_wᵢ Wᵢ) * (α_c ⊙ x))",
        design=DESIGN,
        layers=(ODConv1d, ODConv2d, ODConv3d),
        share=None,
        placement="all_but_first",
    ),
)
