"""The loss that spreads images over experts, so that a few do not take them all.

Noam Shazeer et al.: "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", ICLR 2017,
https://arxiv.org/abs/1701.06538, equations 6 and 7: the squared variation of the experts' mass in a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Balance:
    """An intervention for `condconv.override_routing` that changes nothing, and remembers the experts' weights."""

    def __init__(self) -> None:
        self._seen: dict[int, Tensor] = {}

    def __call__(self, name: str, coefficients: Tensor) -> Tensor:
        """See one layer's weights (B, n) and return them; layers that share a router have the same."""
        self._seen[coefficients.data_ptr()] = coefficients
        return coefficients

    def loss(self) -> Tensor:
        """The mean over what was seen since the last call."""
        losses = [squared_variation(coefficients.sum(dim=0)) for coefficients in self._seen.values()]
        self._seen.clear()
        return torch.stack(losses).mean()


def squared_variation(mass: Tensor) -> Tensor:
    """Variance over squared mean of the experts' mass (n,); 0 where all have the same."""
    return mass.var(correction=0) / mass.mean().square()
