"""A router for inference: its pooling and its linear layer are one native operator in the place of six of torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from condconv.execution import native
from condconv.execution.transforms import transformed
from condconv.routers import PooledLinear


class FusedRouter(PooledLinear):
    """What `PooledLinear` without a hidden layer computes; see there."""

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """Return the coefficients (B, n) of x (B, C, *space)."""
        linear = self._linears[0]
        if linear.weight.dtype != torch.float32 or not _serves(x):
            return super().forward(x, previous)
        return self.gate(torch.ops.condconv.pooled_linear(x, linear.weight, linear.bias))


def fuse_routers(model: nn.Module) -> None:
    """Turn the routers of one linear layer into fused ones, in place; their parameters stay where they are."""
    for module in model.modules():
        if type(module) is PooledLinear and len(module.body) == 1 and module.previous_experts == 0:
            module.fold_norm()
            module.__class__ = FusedRouter


def _serves(x: Tensor) -> bool:
    """Whether the operator can serve: an f32 channels_last image on a CPU that needs no gradient and is no proxy."""
    if isinstance(x, torch.fx.Proxy) or torch.compiler.is_exporting() or not native.available() or transformed():
        return False
    image = x.dim() == 4 and x.device.type == "cpu" and x.dtype == torch.float32 and x.stride(1) == 1
    return image and not (torch.is_grad_enabled() and x.requires_grad)
