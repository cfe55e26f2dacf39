"""Which strategy runs: the one pinned by `use_strategy` or by the layer, else the one that the planner chooses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from condconv.context import ContextStack
from condconv.errors import StrategyError
from condconv.execution import scaled
from condconv.execution.batched_gemm import BatchedGemm
from condconv.execution.fitted import Shape, instructions_here, ranking
from condconv.execution.grouped import Grouped
from condconv.execution.mixture_of_experts import MixtureOfExperts
from condconv.execution.native.strategy import Native, is_counted, needs_gradient
from condconv.execution.native.triton_strategy import Triton
from condconv.execution.reference import Reference
from condconv.execution.static import StaticKernel
from condconv.func_transforms import transformed
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, Mixture, Packed, Scaled, Static, kernels_of
from condconv.registry import Registry

AUTO = "auto"
MOST_PLANS = 4096
"""Choices that are remembered."""
FEW_POSITIONS = 196
"""Positions of an output up to which a dense convolution of several taps may be one product of columns."""
LARGE_ON_A_GPU = 2**22
"""Elements of x from which on a GPU's time for a depthwise convolution is that of the kernel, not of its launch."""


class Strategy(Protocol):
    """How to convolve each example with its own kernel."""

    name: str
    adds_bias: bool
    """Whether its output has the bias added already."""

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None if it can."""

    def macs(self, lowered: Any, geometry: ConvGeometry, input_size: Sequence[int], /) -> tuple[int, int]:
        """Return the multiply-adds it executes for (mixing, convolving) x (B, I, *input_size), bias left out."""

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, *space) of x (B, I, *space), with the bias where it `adds_bias`."""


strategies: Registry[Strategy] = Registry("strategy")
for _strategy in (Reference(), Grouped(), BatchedGemm(), MixtureOfExperts(), StaticKernel(), Native(), Triton()):
    strategies.register(_strategy.name, _strategy)

Road = Callable[[Tensor, Tensor], Tensor]
"""From x (B, I, *space) and coefficients (B, D) to y (B, O, *space)."""

Watcher = Callable[[str, Tensor, Lowered, ConvGeometry], None]
"""Called with (strategy, x, lowered, geometry) before a strategy runs."""

_pinned: ContextStack[str] = ContextStack("pinned strategy")
_watchers: ContextStack[Watcher] = ContextStack("watcher of execution")
_plans: dict[tuple[object, ...], str] = {}


@contextlib.contextmanager
def use_strategy(name: str) -> Iterator[None]:
    """Pin the execution strategy of every conditional layer that this thread, or task, runs inside the block.

    It outranks the layers' own `strategy`; "auto" hands the choice back to the planner.

    Raises:
        UnknownNameError: no such strategy.
    """
    with _pinned.holding(check_strategy(name)):
        yield


@contextlib.contextmanager
def watch_execution(watcher: Watcher) -> Iterator[None]:
    """Show every execution of this context inside the block to `watcher`; the innermost one sees it."""
    with _watchers.holding(watcher):
        yield


def executed_macs(
    strategy: str, input_shape: Sequence[int], lowered: Lowered, geometry: ConvGeometry
) -> tuple[int, int]:
    """Return the multiply-adds (mixing, convolution) that `execute` runs for x of shape (B, I, *space), in closed form.

    A native operator's strategy declares its own; the counted number of `condconv.counting` must equal it.
    """
    if isinstance(lowered, Scaled):
        return scaled.macs(strategies[strategy], input_shape, lowered, geometry)
    mixing, convolution = strategies[strategy].macs(lowered, geometry, input_shape[2:])
    if isinstance(lowered, Mixture | Packed) and lowered.expert_bias is not None:
        mixing += lowered.coefficients.shape[0] * lowered.expert_bias.numel()
    return mixing, convolution


def check_strategy(name: str) -> str:
    """Return `name` if it is "auto" or a registered strategy.

    Raises:
        UnknownNameError: it is neither.
    """
    if name != AUTO:
        strategies[name]
    return name


def choose(x: Tensor, lowered: Lowered, geometry: ConvGeometry, strategy: str, where: str) -> str:
    """Return the name of the strategy that will run: the pinned one, or the planner's choice for "auto".

    Raises:
        StrategyError: the pinned strategy cannot serve this lowered form.
    """
    held = _pinned.values()
    pinned = held[-1] if held else strategy
    if pinned == AUTO:
        return _plan(x, lowered, geometry)
    reason = refusal(pinned, x, lowered, geometry)
    if reason is not None:
        raise StrategyError(f"{where}: strategy={pinned!r} cannot serve it: {reason}; use strategy='auto'")
    return pinned


def refusal(strategy: str, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> str | None:
    """Return why a strategy cannot convolve x with a lowered form, or None if it can."""
    core = scaled.core_form(x, lowered, geometry) if isinstance(lowered, Scaled) else lowered
    return strategies[strategy].supports(core, geometry)


def _plan(x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> str:
    """The fastest strategy, as far as is known; what was chosen for a CPU is remembered."""
    compiling, training = torch.compiler.is_compiling(), needs_gradient(x, lowered)
    if compiling or not x.is_cpu or transformed() or torch.jit.is_tracing():
        return _fastest(x, lowered, geometry, compiling, training)
    question = x.shape, x.stride(1), x.dtype, lowered.form, geometry, training
    answer = _plans.get(question)
    if answer is None:
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        answer = _plans[question] = _fastest(x, lowered, geometry, compiling, training)
    return answer


def _fastest(x: Tensor, lowered: Lowered, geometry: ConvGeometry, compiling: bool, training: bool) -> str:
    """The fastest strategy by what was measured.

    The native operator serves packed experts, and compiled code, which takes it as it is. Otherwise what was measured
    has the word on a CPU, and rules of thumb where that is silent: on other devices, and while compiling.
    """
    if isinstance(lowered, Scaled):
        lowered = scaled.core_form(x, lowered, geometry)
    if isinstance(lowered, Static):
        return "static"
    if (compiling and torch.compiler.is_exporting()) or torch.jit.is_tracing():
        return "batched_gemm"  # The only one whose shapes may all be dynamic in the batch.
    if isinstance(lowered, Mixture) and lowered.experts.shape[0] == 1:
        return "mixture_of_experts"  # One expert: a static convolution and a scale.
    native = _native_serves(x, lowered, geometry)
    if native and (isinstance(lowered, Packed) or compiling):
        return "native"
    if x.is_cpu and not compiling:
        for name in _measured(x, lowered, geometry, training):
            if native if name == "native" else strategies[name].supports(lowered, geometry) is None:
                return name
    shape = lowered.kernel_shape
    if geometry.is_pointwise(shape):
        return "batched_gemm"
    on_gpu = x.device.type == "cuda"
    large = on_gpu and geometry.groups > 1 and x.numel() >= LARGE_ON_A_GPU
    if large and strategies["triton"].supports(lowered, geometry) is None:
        return "triton"
    # Columns are many times as large as the image: they pay where a product is far faster than a convolution.
    positions = math.prod(geometry.output_size(x.shape[2:], shape[2:]))
    dense = geometry.groups == 1 and not geometry.transposed and x.shape[0] > 1 and positions <= FEW_POSITIONS
    return "batched_gemm" if dense and not (on_gpu and x.dtype == torch.float32) else "grouped"


def _measured(x: Tensor, lowered: Lowered, geometry: ConvGeometry, training: bool) -> tuple[str, ...]:
    """The strategies for x and kernels of such shapes, fastest first; none where nothing like it was measured."""
    shape = lowered.kernel_shape
    taps, out_channels = math.prod(shape[2:]), geometry.out_channels(shape)
    if geometry.transposed:
        return ()
    kind, groups = "pointwise" if taps == 1 else "dense", geometry.groups
    if groups > 1:
        kind, groups = ("depthwise", 1) if shape[1] == 1 and out_channels == groups else ("grouped", groups)
    last = x.shape[1] == 1 or x.stride(1) == 1
    positions = math.prod(geometry.output_size(x.shape[2:], shape[2:]))
    stride = math.prod(geometry.stride) ** (1 / geometry.rank)
    experts = lowered.num_experts if isinstance(lowered, Mixture | Packed) else 1
    sizes = x.shape[0], positions, x.shape[1], out_channels, groups, taps, stride, experts
    return ranking(Shape(kind, last, training, *sizes), instructions_here())


def _native_serves(x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> bool:
    """Whether the native operator can serve, and at its speed: it multiplies unpacked experts in f32."""
    fast = (torch.float32, torch.bfloat16) if isinstance(lowered, Packed) else (torch.float32,)
    if x.dtype not in fast or strategies["native"].supports(lowered, geometry) is not None:
        return False
    if not is_counted(x, lowered.kernel_shape, geometry):
        return False
    return not (isinstance(lowered, Packed) and needs_gradient(x, lowered))  # What is unpacked has a gradient.


def execute(x: Tensor, lowered: Lowered, geometry: ConvGeometry, strategy: str) -> Tensor:
    """Convolve x (B, I, *space) with each example's own kernel, and add its bias; → (B, O, *space)."""
    if not torch.compiler.is_compiling() and (watchers := _watchers.values()):
        watchers[-1](strategy, x, lowered, geometry)
    if not torch.compiler.is_exporting() and x.shape[0] == 0:
        return _with_bias(_empty_output(x, lowered, geometry), lowered, geometry)
    return run(x, lowered, geometry, strategy)


def run(x: Tensor, lowered: Lowered, geometry: ConvGeometry, strategy: str) -> Tensor:
    """`execute` where nobody watches and there are examples."""
    chosen = strategies[strategy]
    if type(lowered) is Scaled:
        return _with_bias(scaled.convolve(x, lowered, geometry, chosen), lowered, geometry)
    y = chosen(x, lowered, geometry)
    return y if chosen.adds_bias else _with_bias(y, lowered, geometry)


def road(lowered: Lowered, geometry: ConvGeometry, strategy: str) -> Road | None:
    """`run` with what is in a lowered form beside its coefficients settled, where the strategy gains by it."""
    return Native.road(lowered, geometry) if strategy == Native.name else None


def _with_bias(y: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
    """Y (B, O, *space) plus each example's bias."""
    bias = lowered.bias
    return y if bias is None else y + bias.to(y.dtype).reshape(*bias.shape, *[1] * geometry.rank)


def _empty_output(x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
    """The output for a batch of no examples, attached to the graph so that gradients are zero, not missing."""
    shape = lowered.kernel_shape
    out = x.new_zeros((0, geometry.out_channels(shape), *geometry.output_size(x.shape[2:], shape[2:])))
    kernels = kernels_of(lowered, out.dtype)
    return out + kernels.sum().to(out.dtype) + x.sum()
