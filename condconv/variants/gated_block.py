"""Gated residual blocks: a block runs for the examples that need it, and the others go around it.

Xin Wang, Fisher Yu, Zi-Yi Dou, Trevor Darrell, Joseph E. Gonzalez: "SkipNet: Learning Dynamic Routing in Convolutional
Networks", ECCV 2018, https://arxiv.org/abs/1711.09485.

    y = g F(x) + (1 − g) x,        g = 1 if p > 1/2 else 0,        p = σ( W₂ ReLU( W₁ GAP(x) ) )

F is the whole block, its own addition included. The step has no derivative, and g gets that of p (straight through).
What makes blocks be left out is a loss on the mean of g, which the training loop adds (docs/variants.md).

Defaults: ten hidden channels. A conversion starts with p = 0.9 for every example, so that all blocks run and the
network's function is kept exactly. Departures: no reinforcement learning behind the supervised training; a gate of two
linear layers for each block, where the paper has convolutions, or one recurrent network for all of them; blocks that
change the shape of their input always run, where the paper subsamples the way around them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from condconv.coefficients import Slices
from condconv.layers import ConditionalBlock
from condconv.routers import Gate, Router
from condconv.variants.base import BlockVariant, block_variants

HIDDEN = 10
STARTS_AT = 0.9


class StepGate(Gate):
    """g = 1 if σ(z) > 1/2 else 0, with the derivative of σ(z)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return the gates (B, 1) of logits (B, 1)."""
        p = torch.sigmoid(logits)
        return (logits > 0).to(p.dtype) + (p - p.detach())


class OpenRouter(Router):
    """A router that lets a conversion start with p = 0.9."""

    def _constant_logits(self) -> Tensor:
        return torch.full((self.slices.size,), math.log(STARTS_AT / (1 - STARTS_AT)))


class GatedBlock(ConditionalBlock):
    """A block that is left out where its gate says so.

    >>> layer = GatedBlock(torch.nn.Conv2d(16, 16, 3, padding=1), in_channels=16)
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def default_router(self, in_channels: int, slices: Slices) -> Router:
        """Return pooling, two linear layers and the step."""
        return OpenRouter(in_channels, slices, hidden_channels=HIDDEN, gate=StepGate())


block_variants.register(
    "gated_block",
    BlockVariant(
        name="gated_block",
        title="SkipNet: Learning Dynamic Routing in Convolutional Networks (ECCV 2018)",
        url="https://arxiv.org/abs/1711.09485",
        equation="y = g(x) F(x) + (1 − g(x)) x",
        block=GatedBlock,
    ),
)
