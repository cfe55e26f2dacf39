"""What one call of a module costs by the papers' convention: convolution, linear, squeeze-excite, mixing, routing.

One multiply and one add count as one. Numbers are for the whole batch of the call.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from condconv.banks import Bank
from condconv.layers import ConditionalLayer
from condconv.routers import Router

_SQUEEZE_EXCITE = frozenset(
    {"SqueezeExcite", "SqueezeExciteCl", "SqueezeExcitation", "SEModule", "SELayer", "EffectiveSEModule", "BlockESE"}
)
"""Class names of squeeze-excite modules: timm's, torchvision's, and the one that most home-made networks use."""


class Macs(NamedTuple):
    """Multiply-adds by purpose."""

    convolution: int = 0
    """Convolving (or multiplying by a linear layer's matrix) with a kernel that is ready."""
    mixing: int = 0
    """What a bank does beside it: making that kernel from experts, scaling maps."""
    routing: int = 0
    """A router's linear layers."""
    pooling: int = 0
    """Global pooling of routers and squeeze-excite modules, and the latter's rescaling."""


def is_squeeze_excite(module: nn.Module) -> bool:
    """Whether the module, or a class that it is derived from, is known as a squeeze-excite module."""
    return any(kind.__name__ in _SQUEEZE_EXCITE for kind in type(module).__mro__)


def kind_of(module: nn.Module) -> str | None:
    """Return the word for this kind of module in a table, or None for one that the convention does not count."""
    if isinstance(module, ConditionalLayer):
        return "conditional linear" if issubclass(module.static_type, nn.Linear) else "conditional convolution"
    if _is_timm_cond_conv(module):
        return "conditional convolution"
    if isinstance(module, Router):
        return "router"
    if isinstance(module, _ConvNd):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    return "squeeze-excite" if is_squeeze_excite(module) else None


def paper_macs(module: nn.Module, x: Tensor, y: Tensor) -> Macs:
    """Return what one call that maps x to y costs; `kind_of(module)` must not be None.

    Output positions are read off y, so that subclasses with their own padding count right.
    """
    if isinstance(module, Router):
        batch, cost = x.shape[0], module.macs(x.shape[2:])
        return Macs(routing=batch * cost["linear"], pooling=batch * cost["pool"])
    mixing = 0
    if isinstance(module, ConditionalLayer):
        kernel = module.bank.kernel_shape
        transposed = module.geometry.transposed
        mixing = bank_macs(module.bank, x, y, issubclass(module.static_type, nn.Linear))
    elif _is_timm_cond_conv(module):
        kernel, transposed = cast("tuple[int, ...]", module.weight_shape), False
        mixing = (1 if x.dim() == 3 else x.shape[0]) * cast(int, module.num_experts) * math.prod(kernel)
    elif isinstance(module, (_ConvNd, nn.Linear)):
        kernel = tuple(module.weight.shape)
        transposed = getattr(module, "transposed", False)
    else:
        return Macs(pooling=2 * x.numel())
    # Every input element of a transposed convolution meets O/g·K weights, every output element of another one I/g·K.
    applied = x.numel() * math.prod(kernel[1:]) if transposed else y.numel() * math.prod(kernel[1:])
    return Macs(convolution=applied, mixing=mixing)


def bank_macs(bank: Bank, x: Tensor, y: Tensor, linear: bool) -> int:
    """Multiply-adds of a bank in a call that maps x to y, beside the convolution itself."""
    if linear:
        batch = 1 if x.dim() == 1 else x.shape[0]
        return batch * bank.macs(x.shape[1:-1], y.shape[1:-1])
    rank = len(bank.kernel_shape) - 2
    batch = 1 if x.dim() == rank + 1 else x.shape[0]
    return batch * bank.macs(x.shape[-rank:], y.shape[-rank:])


def _is_timm_cond_conv(module: nn.Module) -> bool:
    """Whether this is timm's own CondConv layer, recognised without importing timm."""
    return any(kind.__module__ == "timm.layers.cond_conv2d" for kind in type(module).__mro__)
