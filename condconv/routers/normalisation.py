"""Normalising a router's pooled input: each feature to mean 0 and variance 1 over the images.

Pooled features have a large common mean and little variance between images, so that a plain router begins nearly
constant. Batch normalisation without parameters (Ioffe, Szegedy, ICML 2015), except that a batch of one trains: it is
normalised with the running statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOMENTUM, EPSILON = 0.1, 1e-5


class PooledNorm(nn.Module):
    """z (B, C) → (z - μ) / √(σ² + ε): over the batch in training, by running statistics in evaluation.

    Args:
        features: C.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        if self.training:
            return _train(z, self.mean, self.variance)
        return (z - self.mean.to(z.dtype)) * torch.rsqrt(self.variance.to(z.dtype) + EPSILON)


def _train(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalise z over its batch and move the running statistics; by these where the batch is a single image."""
    if z.shape[0] < 2:
        return (z - mean.to(z.dtype)) * torch.rsqrt(variance.to(z.dtype) + EPSILON)
    of_batch, spread = z.mean(dim=0), z.var(dim=0, correction=0)
    with torch.no_grad():
        mean.lerp_(of_batch.to(mean.dtype), MOMENTUM)
        variance.lerp_(spread.to(variance.dtype) * (z.shape[0] / (z.shape[0] - 1)), MOMENTUM)
    return (z - of_batch) * torch.rsqrt(spread + EPSILON)


# FX records it as one call: the size of the batch decides in it.
torch.fx.wrap("_train")
