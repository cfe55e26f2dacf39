"""Routers: which kernels does each example get? x (B, C, *space) → coefficients (B, n)."""

from condconv.routers.gates import AnnealedGate, Gate, SigmoidGate, SoftmaxGate, StepWatch, TopKGate, drop_experts
from condconv.routers.normalisation import HiddenBatchNorm, HiddenLayerNorm
from condconv.routers.pooled_linear import PooledLinear
from condconv.routers.router import Router
from condconv.routers.schedule import RoutingSchedule, annealed_gates
from condconv.routers.scope import RoutingScope, attach_scope, detach_scopes
from condconv.routers.squeeze_excite import SqueezeExcite
from condconv.routers.valid_area import valid_area

__all__ = [
    "AnnealedGate",
    "Gate",
    "HiddenBatchNorm",
    "HiddenLayerNorm",
    "PooledLinear",
    "Router",
    "RoutingSchedule",
    "RoutingScope",
    "SigmoidGate",
    "SoftmaxGate",
    "SqueezeExcite",
    "StepWatch",
    "TopKGate",
    "annealed_gates",
    "attach_scope",
    "detach_scopes",
    "drop_experts",
    "valid_area",
]
