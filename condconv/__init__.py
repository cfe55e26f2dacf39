"""Conditionally parameterised convolutions for PyTorch: every example gets its own kernel, W(x) = Σᵢ αᵢ(x) Wᵢ.

Importing this package loads torch and nothing else; what needs timm is imported when it is first used. Type
checkers and the API reference read `__init__.pyi`.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from condconv.conversion import collapse, convert, plan, revert
from condconv.counting import count
from condconv.errors import (
    ArgumentError,
    BusyError,
    CheckpointError,
    CondConvError,
    ConversionError,
    DataError,
    NonFiniteError,
    RoutingError,
    ShapeError,
    SiteError,
    StrategyError,
    UnknownNameError,
)
from condconv.execution import use_strategy
from condconv.layers import last_strategy
from condconv.reuse import reuse_kernels
from condconv.routers import (
    PooledLinear,
    RoutingSchedule,
    SigmoidGate,
    SoftmaxGate,
    SqueezeExcite,
    TopKGate,
    valid_area,
)
from condconv.routing_hooks import detect_nonfinite, override_routing, record_routing
from condconv.tuning import tune
from condconv.variants import block_variants, variants

__version__ = "0.1.0"

_LAZY = {
    name: "condconv.models"
    for name in ("create_model", "list_models", "push_to_hub", "save_pretrained", "static_twin")
} | {
    "compress": "condconv.compression",
    "export": "condconv.exporting",
    "from_pretrained": "condconv.pretrained",
    "optimize_for_inference": "condconv.inference",
}
_PACKAGES = ("analysis", "compression", "data", "exporting", "inference", "models")
"""What `condconv.models.load_weights` and the like lead through without an import of their own."""

__all__ = [
    "ArgumentError",
    "BusyError",
    "CheckpointError",
    "CondConvError",
    "ConversionError",
    "DataError",
    "NonFiniteError",
    "PooledLinear",
    "RoutingError",
    "RoutingSchedule",
    "ShapeError",
    "SiteError",
    "SigmoidGate",
    "SoftmaxGate",
    "SqueezeExcite",
    "StrategyError",
    "TopKGate",
    "UnknownNameError",
    "collapse",
    "compress",
    "convert",
    "count",
    "create_model",
    "detect_nonfinite",
    "export",
    "from_pretrained",
    "last_strategy",
    "list_models",
    "optimize_for_inference",
    "override_routing",
    "plan",
    "push_to_hub",
    "record_routing",
    "reuse_kernels",
    "revert",
    "save_pretrained",
    "static_twin",
    "tune",
    "use_strategy",
    "valid_area",
]

_LAYERS = {layer.__name__: layer for variant in variants for layer in variants[variant].layers}
_LAYERS |= {block.__name__: block for block in (block_variants[name].block for name in block_variants)}
"""The layers and blocks of all variants are public names; type checkers read them in `__init__.pyi`."""
__all__ += list(_LAYERS)
__all__.sort()


_RENAMED = {"TemperatureSchedule": "RoutingSchedule"}
"""Old public names, and their successors."""


def __getattr__(name: str) -> Any:
    if name in _LAYERS:
        return _LAYERS[name]
    if name in _RENAMED:
        successor = _RENAMED[name]
        warnings.warn(f"condconv.{name} is now condconv.{successor}", DeprecationWarning, stacklevel=2)
        return globals()[successor]
    if name in _PACKAGES:
        return importlib.import_module(f"condconv.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'condconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
