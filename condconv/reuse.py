"""Kernel reuse for streams: while the coefficients hardly move, a layer keeps the kernel that it has mixed.

Neighbouring frames of a video route alike, and mixing a kernel again for a change in the fourth digit is waste. The
mixed kernels live in the context manager, which is this thread's or task's own: two streams never meet.

    with torch.no_grad(), condconv.reuse_kernels(model, tolerance=1e-2) as reuse:
        for frame in frames:
            model(frame)
    print(reuse)
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condconv.arguments import number
from condconv.context import ContextStack
from condconv.errors import ArgumentError
from condconv.lowered import Kernels, Mixed, kernels_of, tensors
from condconv.routing_hooks import conditional_names

_streams: ContextStack[KernelReuse] = ContextStack("condconv streams")


@dataclass(frozen=True)
class _Mixed:
    """A layer's last mixed kernels, and what they were mixed from."""

    kernels: Kernels
    coefficients: Tensor
    sources: tuple[Tensor, ...]
    """Kept, so that their memory cannot come to hold other experts while addresses are compared."""
    state: tuple[object, ...]
    """Of what else decides the kernels: versions and addresses of the sources, types."""


class KernelReuse:
    """What `reuse_kernels` counts, by layer name: how often kernels were mixed, and how often they were reused."""

    def __init__(self, names: dict[int, str], tolerance: float) -> None:
        self.names = names
        self.tolerance = tolerance
        self.mixed: Counter[str] = Counter()
        self.reused: Counter[str] = Counter()
        self._last: dict[str, _Mixed] = {}

    def share(self, layer: str | None = None) -> float:
        """Return the part of a layer's calls, or of all calls, that reused a kernel; NaN before the first call."""
        reused, mixed = (sum(c.values()) if layer is None else c[layer] for c in (self.reused, self.mixed))
        return reused / (reused + mixed) if reused + mixed else math.nan

    def serve(self, name: str, x: Tensor, lowered: Mixed) -> Kernels | Mixed:
        """Return the kernels to convolve an image x with: those of before, or newly mixed ones."""
        coefficients, sources = lowered.coefficients, tuple(tensors(lowered[1:]))
        _check(name, coefficients, sources)
        if coefficients.shape[0] == 0:
            return lowered
        versions = [(source.data_ptr(), source._version) for source in sources]
        state = (x.dtype, torch.is_autocast_enabled(x.device.type), coefficients.shape, *versions)
        last = self._last.get(name)
        # Written so that a NaN among the coefficients is never near enough.
        if last is not None and last.state == state and _distance(coefficients, last.coefficients) <= self.tolerance:
            self.reused[name] += 1
            return last.kernels
        kernels = Kernels(kernels_of(lowered, x.dtype), lowered.bias)
        self._last[name] = _Mixed(kernels, coefficients.clone(), sources, state)
        self.mixed[name] += 1
        return kernels

    def __str__(self) -> str:
        calls = sum(self.mixed.values()) + sum(self.reused.values())
        lines = [f"kernels reused in {sum(self.reused.values())} of {calls} calls, tolerance {self.tolerance:g}"]
        for name in self.mixed:
            lines.append(f"  {name or '(model)'}: {self.reused[name]} of {self.mixed[name] + self.reused[name]}")
        return "\n".join(lines)


@contextlib.contextmanager
def reuse_kernels(model: nn.Module, tolerance: float) -> Iterator[KernelReuse]:
    """Let every conditional layer that runs inside the block keep its kernels from call to call.

    A layer mixes anew when the coefficients of the batch have moved by more than `tolerance` since it last mixed (the
    largest change of any), when the batch has another size, or when its experts were replaced or changed in place
    (changes through `.data` leave no trace, so don't). What was spared is in the `KernelReuse` that it yields.

    It is for inference: nothing may be differentiated. Compiled code takes no notice of it.

    Args:
        model: a network with conditional layers, as it is or as `optimize_for_inference` made it.
        tolerance: at least 0; 0 reuses a kernel only for equal coefficients.

    Raises:
        ArgumentError: a negative or undefined tolerance; no conditional layer, or a compiled one; and inside the block,
            a layer that is to be differentiated.
    """
    tolerance = number("reuse_kernels", "tolerance", tolerance, minimum=0, remedy="start with 0.01")
    stream = KernelReuse(conditional_names(model, "reuse_kernels"), tolerance)
    with _streams.holding(stream):
        yield stream


def reuse(layer: nn.Module, lowered: Any, x: Tensor) -> Any:
    """Return what a layer is to convolve x with: kernels of the innermost stream if there is one, else `lowered`."""
    if not torch.compiler.is_compiling():
        for stream in reversed(_streams.values()):
            if (name := stream.names.get(id(layer))) is not None:
                return lowered.keeping(functools.partial(stream.serve, name, x))
    return lowered


def _check(name: str, coefficients: Tensor, sources: tuple[Tensor, ...]) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (coefficients, *sources)):
        raise ArgumentError(
            f"reuse_kernels: {name or 'the model'} is to be differentiated, and a kernel of an earlier call has no "
            "gradient; run it under torch.no_grad()"
        )
    if any(source.is_inference() for source in sources):
        raise ArgumentError(
            f"reuse_kernels: the experts of {name or 'the model'} were made under torch.inference_mode, where torch "
            "does not notice changes; make or load the network outside of it (running it inside is fine)"
        )


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
