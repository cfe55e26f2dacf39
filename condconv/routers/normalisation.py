"""Normalising in a router: what some papers have behind its first linear layer, with learned factors.

Both kinds compute in the type of their input, f32 at least, and keep their own tensors so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.errors import ShapeError

MOMENTUM = 0.1


class _Precise(nn.Module):
    """Keeps floating-point tensors in f32 at least, whatever `.to(dtype)` asks of the rest of a network."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keeping_precision(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            if not changed.is_floating_point():
                return changed
            return changed.to(torch.promote_types(changed.dtype, torch.float32))

        return super()._apply(keeping_precision, recurse)


class HiddenBatchNorm(_Precise, nn.BatchNorm1d):
    """Batch normalisation of z (B, C), as `nn.BatchNorm1d`; a batch of one example cannot train."""

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        if self.training:
            z = _of_several(z)
        # Not that of torch, which asks for the rank: FX cannot be asked.
        return F.batch_norm(
            z, self.running_mean, self.running_var, self.weight, self.bias, self.training, MOMENTUM, self.eps
        )

    def factor_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return factor and shift, (C,) each in f64, of the evaluation."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None
        factor = self.weight.double() * (variance.double() + self.eps).rsqrt()
        return factor, self.bias.double() - factor * mean.double()


class HiddenLayerNorm(_Precise, nn.LayerNorm):
    """Layer normalisation of z (B, C), as `nn.LayerNorm`."""


def _of_several(z: Tensor) -> Tensor:
    """Return z (B, C), or refuse a batch of one example."""
    if z.shape[0] == 1:
        raise ShapeError(
            "the batch norm in its router cannot be trained with one example; use larger batches, pass norm='layer' or "
            "norm=None, or freeze it with .eval()"
        )
    return z


def hidden_norm(kind: str | None, features: int) -> list[nn.Module]:
    """What stands behind a router's first linear layer: "batch", "layer", or None for nothing."""
    if kind is None:
        return []
    return [HiddenBatchNorm(features) if kind == "batch" else HiddenLayerNorm(features)]


# FX records it as one call: the size of the batch decides in it.
torch.fx.wrap("_of_several")
