"""Routers: which kernels does each example get? x (B, C, *space) → coefficients (B, n)."""

from condconv.routers.gates import Gate, SigmoidGate, SoftmaxGate, StepWatch, TopKGate, drop_experts
from condconv.routers.normalisation import PooledNorm
from condconv.routers.pooled_linear import PooledLinear
from condconv.routers.router import Router
from condconv.routers.schedule import TemperatureSchedule
from condconv.routers.scope import RoutingScope, attach_scope, detach_scopes
from condconv.routers.squeeze_excite import SqueezeExcite

__all__ = [
    "Gate",
    "PooledLinear",
    "PooledNorm",
    "Router",
    "RoutingScope",
    "SigmoidGate",
    "SoftmaxGate",
    "SqueezeExcite",
    "StepWatch",
    "TemperatureSchedule",
    "TopKGate",
    "attach_scope",
    "detach_scopes",
    "drop_experts",
]
