"""A sparse mixture of experts: only k of n kernels have weight in an example's, and noise lets all of them be tried.

Noam Shazeer, Azalia Mirhoseini, Krzysztof Maziarz, Andy Davis, Quoc Le, Geoffrey Hinton, Jeff Dean: "Outrageously Large
Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", ICLR 2017, https://arxiv.org/abs/1701.06538.

    W(x) = Σᵢ αᵢ Wᵢ,    α = softmax( the k largest of h ),    h = G GAP(x) + ε ⊙ softplus( N GAP(x) )

ε is drawn from a standard normal distribution in training, and zero else (equations 3 to 5). For k = 1 the softmax of
one logit is 1 and has no gradient: α learns straight through. A loss on the experts' weights in a batch keeps a few of
them from taking all examples, and the training loop adds it: `condconv train --expert-balance`, or docs/variants.md.

Defaults: n = 8, k = 2, a router for each layer. Initialisation: G and N zero, kernels as torch.nn draws one. Upcycling
makes each expert a copy of the static kernel, which is exact whatever is routed where; noise sends them different
examples, and so they part. Departures: the experts are the kernels of one convolution and are mixed before it, so that
mixing costs n·|W| multiply-adds as in CondConv; of the two losses that on the weights, not that on the load.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.banks import DenseBank
from condconv.coefficients import Slices
from condconv.errors import ConversionError
from condconv.layers import (
    ConditionalConv1d,
    ConditionalConv2d,
    ConditionalConv3d,
    ConditionalConvTranspose2d,
    ConditionalLinear,
    Design,
)
from condconv.routers import Gate, Router, TopKGate
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants


class CopiesBank(DenseBank):
    """n experts that start as copies of one kernel."""

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """Copy the kernel and the bias; `coefficients` (n,) must sum to one.

        Raises:
            ConversionError: they do not.
        """
        if not coefficients.is_meta and abs(float(coefficients.double().sum()) - 1) > 1e-6:
            rule = "init='upcycle' needs a gate whose weights sum to one"
            raise ConversionError(f"{rule}; use the paper's, or init='fresh'")
        self.weight.copy_(weight.expand_as(self.weight))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias.expand_as(self.bias))


class Softmax(Gate):
    """α = softmax(z), which nothing anneals."""

    renormalises = True

    def forward(self, logits: Tensor) -> Tensor:
        """Return softmax(logits) over the experts, (B, n)."""
        return torch.softmax(logits, dim=1)


def noise(like: Tensor) -> Tensor:
    """ε, of the shape of a tensor."""
    return torch.randn_like(like)


class NoisyTopKGate(TopKGate):
    """The k largest of logits with noise of a learned scale.

    Args:
        k: how many experts have weight.
    """

    def __init__(self, k: int) -> None:
        super().__init__(Softmax(), k)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the coefficients (B, n) of logits (B, 2 n): those of the experts, then those of the noise."""
        experts, scale = logits.chunk(2, dim=1)
        if self.training:
            experts = experts + noise(experts) * F.softplus(scale)
        return super().forward(experts)


class NoisyRouter(Router):
    """Pooling, and one linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        """Set the linear layer to zero."""
        for layer in self._linears:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def _router(site: ConvSite, slices: Slices, k: int) -> Router:
    gate = NoisyTopKGate(k)
    return NoisyRouter(site.in_channels, slices, hidden_channels=None, gate=gate, logits=2 * slices.size)


DESIGN = Design(bank=CopiesBank, router=_router, num_experts=8, options={"k": 2})


class SparseMoEConv1d(ConditionalConv1d):
    """A sparse mixture for `nn.Conv1d`: x (B, I, W) → (B, O, W'), experts (n, O, I/g, kw)."""

    design = DESIGN


class SparseMoEConv2d(ConditionalConv2d):
    """A sparse mixture for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W'), experts (n, O, I/g, kh, kw).

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: n, 8 where None.
        router: a factory (site, slices) → router; None for the paper's, False for no router, so that `forward` must be
            given coefficients.
        strategy: execution strategy, or "auto".
        k: how many experts have weight in an example's kernel.

    >>> layer = SparseMoEConv2d(16, 32, 3, padding=1, num_experts=4, k=1)
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


class SparseMoEConv3d(ConditionalConv3d):
    """A sparse mixture for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W'), experts (n, O, I/g, kd, kh, kw)."""

    design = DESIGN


class SparseMoEConvTranspose2d(ConditionalConvTranspose2d):
    """A sparse mixture for `nn.ConvTranspose2d`: x (B, I, H, W) → (B, O, H', W'), experts (n, I, O/g, kh, kw)."""

    design = DESIGN


class SparseMoELinear(ConditionalLinear):
    """A sparse mixture for `nn.Linear`: x (B, *positions, I) → (B, *positions, O)."""

    design = DESIGN


variants.register(
    "sparse_moe",
    Variant(
        name="sparse_moe",
        title="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer (ICLR 2017)",
        url="https://arxiv.org/abs/1701.06538",
        equation="W(x) = Σᵢ softmax(k largest of G GAP(x) + noise)ᵢ Wᵢ",
        design=DESIGN,
        layers=(SparseMoEConv1d, SparseMoEConv2d, SparseMoEConv3d, SparseMoEConvTranspose2d, SparseMoELinear),
        share=None,
        placement="second_half",
    ),
)
