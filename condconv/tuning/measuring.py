"""`condconv.tune`: every strategy that can serve a layer takes its turn, and the fastest is pinned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condconv.counting.table import render
from condconv.counting.trace import evaluating
from condconv.errors import ArgumentError
from condconv.execution import (
    AUTO,
    Question,
    choose,
    execute,
    question,
    refusal,
    strategies,
    use_strategy,
    watch_execution,
)
from condconv.geometry import ConvGeometry
from condconv.layers import ConditionalLayer
from condconv.lowered import Lowered, tensors
from condconv.routing_hooks import conditional_names, override_routing
from condconv.timing import UNSTEADY, Call, Timing, finished, measure

BURST_S, TURNS = 0.02, 5
NOT_MEASURED = "reference"
"""Defines the meaning, and is never the fastest."""


@dataclass(frozen=True)
class TunedLayer:
    """What was measured for a layer; a layer that ran on inputs of several shapes has a row for each."""

    layer: str
    question: Question
    strategy: str
    """The fastest, which is pinned."""
    times_ms: dict[str, float]
    """The median of each strategy that can serve, fastest first."""
    planned: str
    """What the planner would have chosen."""
    noisy: bool
    """Whether a turn still differed from the others by more than 30 % when it was repeated."""

    @property
    def ms(self) -> float:
        """The median of the fastest."""
        return self.times_ms[self.strategy]

    @property
    def next_best(self) -> str | None:
        """The second fastest strategy, or None where no other can serve."""
        return next((name for name in self.times_ms if name != self.strategy), None)

    def ratio(self, strategy: str) -> float:
        """The time of a strategy over that of the fastest."""
        return self.times_ms[strategy] / self.ms


@dataclass(frozen=True)
class Tuning:
    """What `tune` measured and pinned; prints as a table."""

    training: bool
    rows: tuple[TunedLayer, ...]
    left: dict[str, str]
    """Layers that were not tuned, and why."""

    def __str__(self) -> str:
        head = ["layer", "input", "chosen", "next best", "planned", "ms", "next best", "planned"]
        lines = [[*_words(row), f"{row.ms:.4f}{'~' if row.noisy else ''}", *_ratios(row)] for row in self.rows]
        machine = self.rows[0].question.machine if self.rows else "nothing measured"
        threads = f", {self.rows[0].question.threads} threads" if self.rows and self.rows[0].question.threads else ""
        passes = "forward and backward" if self.training else "forward"
        text = f"tuned for {'training' if self.training else 'inference'} ({passes}) on {machine}{threads}\n"
        text += render([head, *lines], left=5)
        if any(row.noisy for row in self.rows):
            text += f"\n~ a turn differed by more than {UNSTEADY:.0%} from the others, and did so again when repeated"
        return text + "".join(f"\nnot tuned: {name or '(model)'}: {why}" for name, why in self.left.items())


def _words(row: TunedLayer) -> list[str]:
    shape = "x".join(map(str, row.question.input_shape))
    return [row.layer or "(model)", shape, row.strategy, row.next_best or "–", row.planned]


def _ratios(row: TunedLayer) -> list[str]:
    return [f"×{row.ratio(name):.2f}" if name in row.times_ms else "–" for name in (row.next_best, row.planned)]


@dataclass(frozen=True)
class Caught:
    """One execution that the model asked for."""

    question: Question
    x: Tensor
    lowered: Lowered
    geometry: ConvGeometry
    layers: list[str] = field(default_factory=list)
    """Those that ask the same."""


def tune(
    model: nn.Module, example: Any, *, training: bool = False, progress: Callable[[int, int], None] | None = None
) -> Tuning:
    """Measure the strategies of every conditional layer on this machine, and pin the fastest on the layer.

    The model runs once on `example`, in eval mode. Then each strategy that can serve a layer's input is measured, all
    taking turns, and the layer keeps the fastest for inputs like this one: same shape, memory format, type, number of
    threads and machine, and the same question, inference or training. Everything else is planned as before, so tune
    again for another batch size; what was tuned stays. A layer whose own `strategy` is set keeps it, `use_strategy`
    outranks pins, and compiled code is planned. `save_pretrained` remembers pins.

    Weights, gradients, buffers, modes and the random state stay as they are. What is run and measured runs under the
    autocast that is on. Interrupted, it leaves pinned what is done.

    Args:
        model: a network with conditional layers, or an inference form of one.
        example: the input to tune for, on the model's device and in the memory format in which it will come: a
            tensor, or a tuple of the model's arguments.
        training: whether to measure forward and backward together.
        progress: is told how much is measured, and of how much.

    Raises:
        ArgumentError: the model has no conditional layer, is compiled, or, where `training`, has nothing to train.
        ShapeError: the example has the wrong shape: a layer's own error.
    """
    names = conditional_names(model, "tune")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ConditionalLayer)}
    rows: list[TunedLayer] = []
    with evaluating(model), torch.set_grad_enabled(training), use_strategy(AUTO):
        ran, caught = catch(model, names, example)
        fixed = {name for name, layer in layers.items() if layer.strategy != AUTO}
        if training and not any(one.question.training for one in caught):
            raise ArgumentError("tune: training=True, but nothing in the model requires a gradient; tune for inference")
        wanted = [one for one in caught if one.layers and not fixed.issuperset(one.layers)]
        for done, one in enumerate(wanted, 1):
            times = timed(one)
            for name in one.layers:
                if name not in fixed:
                    rows.append(_row(name, one, times))
                    layers[name].pins = {**layers[name].pins, one.question: rows[-1].strategy}
            if progress is not None:
                progress(done, len(wanted))
    left = {name: f"its own strategy is {layers[name].strategy!r}" for name in names.values() if name in fixed}
    left |= {name: "it did not run on the example" for name in names.values() if name not in ran}
    order = {name: place for place, name in enumerate(layers)}
    return Tuning(training, tuple(sorted(rows, key=lambda row: order[row.layer])), left)


def catch(model: nn.Module, names: dict[int, str], example: Any) -> tuple[set[str], list[Caught]]:
    """Run the model; return the layers that ran, and what they asked, once for those that ask the same."""
    running: list[str] = []
    found: dict[tuple[object, ...], Caught] = {}

    def note(name: str, coefficients: Tensor) -> Tensor:
        running.append(name)
        return coefficients

    def keep(_: str, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> None:
        asked = question(x, lowered)
        shapes = (part.shape for part in tensors(lowered))
        one = found.setdefault((asked, geometry, *shapes), Caught(asked, _leaf(x), _leaf(lowered), geometry))
        if running[-1] not in one.layers:
            one.layers.append(running[-1])

    with override_routing(model, note), watch_execution(keep):
        model(*example) if isinstance(example, tuple) else model(example)
    return set(running), list(found.values())


def _leaf(part: Any) -> Any:
    """A tensor with the same memory and no history; a lowered form of such tensors."""
    if isinstance(part, Tensor):
        return part.detach().requires_grad_(part.requires_grad)
    return type(part)(*map(_leaf, part)) if hasattr(part, "_fields") else part


def timed(one: Caught) -> dict[str, Timing]:
    """The times of the strategies that can serve, in the order of the registry."""
    return measure(dict(_contenders(one)), BURST_S, turns=TURNS)


def _contenders(one: Caught) -> Iterator[tuple[str, Call]]:
    """A call for each strategy that can serve.

    One that says so and then fails, for lack of memory or because of a type, is left out; unless it is the last hope.
    """
    error: RuntimeError | None = None
    served = False
    for name in strategies:
        if name == NOT_MEASURED or refusal(name, one.x, one.lowered, one.geometry) is not None:
            continue
        try:
            call = finished(_work(one, name), one.x.device)
            call()
        except RuntimeError as failure:
            error = failure
            continue
        served = True
        yield name, call
    if error is not None and not served:
        raise error


def _work(one: Caught, name: str) -> Call:
    """The forward pass, and the backward pass where a gradient is asked for."""

    def forward() -> Tensor:
        return execute(one.x, one.lowered, one.geometry, name)

    if not one.question.training:
        return forward
    leaves = [part for part in (one.x, *tensors(one.lowered)) if part.requires_grad]
    gradient = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), leaves, gradient)


def _row(name: str, one: Caught, times: dict[str, Timing]) -> TunedLayer:
    medians = {strategy: timing.ms.median for strategy, timing in times.items()}
    ordered = dict(sorted(medians.items(), key=lambda pair: pair[1]))
    fastest = next(iter(ordered))
    planned = choose(one.x, one.lowered, one.geometry, AUTO, "tune")
    noisy = any(times[strategy].unsteady for strategy in list(ordered)[:2])
    return TunedLayer(name, one.question, fastest, ordered, planned, noisy)
