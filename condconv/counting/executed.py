"""The `executed` convention: what the chosen strategies really ran, from dispatch.

Convolutions and matrix products wherever they happen (attention too) and, inside conditional layers, products of two
tensors element by element: with those the mixture-of-experts strategy scales its experts' outputs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from condconv.counting.formulas import formula_of
from condconv.counting.trace import Recorder
from condconv.execution import executed_macs, watch_execution
from condconv.geometry import ConvGeometry
from condconv.layers import ConditionalLayer
from condconv.lowered import Lowered


class DispatchCount(TorchDispatchMode):
    """Adds up the multiply-adds of every operator, by the innermost module of `recorder` that is running."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self.macs: Counter[str] = Counter()
        """Module name → multiply-adds."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = formula_of(getattr(function, "overloadpacket", function))
        if formula is None and torch.is_inference_mode_enabled() and hasattr(function, "decompose"):
            # In inference mode composite operators arrive whole.
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        name, module = self._recorder.running
        if formula is not None:
            self.macs[name] += formula(result, *args, **kwargs)
        elif isinstance(module, ConditionalLayer) and function is torch.ops.aten.mul.Tensor:
            self.macs[name] += result.numel() if all(isinstance(arg, Tensor) for arg in args) else 0
        return result


class WatchExecution:
    """Notes, at the seam where strategies run, which one ran and what it declares to spend on mixing."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.mixing: Counter[str] = Counter()
        self.declared: Counter[str] = Counter()
        """Layer name → multiply-adds by the closed forms; equal to what is dispatched."""
        self.strategies: dict[str, str] = {}

    def __enter__(self) -> WatchExecution:
        self._watching = watch_execution(self._note)
        self._watching.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._watching.__exit__(*exception)

    def _note(self, strategy: str, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> None:
        name, _ = self._recorder.running
        mixing, convolution = executed_macs(strategy, x.shape, lowered, geometry)
        self.mixing[name] += mixing
        self.declared[name] += mixing + convolution
        self.strategies[name] = strategy
