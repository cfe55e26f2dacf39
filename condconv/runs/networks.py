"""The networks of one run: the conditional one, its static twin, and a static one widened to its multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from condconv.conversion.apply import conditional_layers
from condconv.counting import count
from condconv.data import Source
from condconv.errors import ArgumentError, argument_error
from condconv.registry import unknown_name_message
from condconv.runs.building import CONDITIONAL, STATIC, WIDENED, NetworkBuilder
from condconv.runs.config import NO_VARIANT, SMALL_INPUT_STRIDES, TrainConfig
from condconv.runs.starting import Start
from condconv.tasks import task_of
from condconv.tasks.base import Task
from condconv.variants import variants

WIDTH_TOLERANCE = 0.02
NOTICED_OVERHEAD, ADVISED_OVERHEAD = 0.08, 0.05
_CLOSE_ENOUGH = 0.002
_BISECTIONS = 20


@dataclass(frozen=True)
class Cost:
    """What a network costs: multiply-adds of one image (the papers' convention), and parameters."""

    macs: int
    params: int


@dataclass(frozen=True)
class NetworkSpec:
    """One network of the run: how to build it (the same weights each time), its cost, and what to say about it.

    `ratio` is its multiply-adds over those of the static network of the same shape, whether that is trained or not.
    """

    name: str
    build: Callable[[], nn.Module]
    cost: Cost
    ratio: float
    description: str
    variant: str


def plan_networks(task: Task, source: Source) -> list[NetworkSpec]:
    """The networks to train, in order. Raises `ArgumentError` for an unknown model or variant."""
    config = task.config
    if config.variant != NO_VARIANT and config.variant not in variants:
        names = [*variants.names(), NO_VARIANT]
        raise ArgumentError(f"--variant: {unknown_name_message('variant', config.variant, names)}")
    planner = _Planner(task, source)
    builder = planner.builder
    network = builder.static()
    _require_pixels(config, source, network)
    base = planner.cost(network)
    description = "the network with ordinary, static convolutions"
    static = NetworkSpec(STATIC, builder.static, base, 1.0, description, NO_VARIANT)
    if config.variant == NO_VARIANT:
        return [static]
    network = builder.conditional()
    cost, description = planner.cost(network), f"{builder.variant}, {_experts(network)} experts"
    ratio = cost.macs / base.macs
    conditional = NetworkSpec(CONDITIONAL, builder.conditional, cost, ratio, description, builder.variant)
    if not config.twin:
        return [conditional]
    width = planner.matching_width(conditional.cost.macs)
    afresh = "" if config.pretrained is None else ", from fresh weights"
    description = f"static, {width:.4g} times as wide{afresh}"
    cost = planner.cost(builder.static(width))
    ratio = cost.macs / base.macs
    widened = NetworkSpec(WIDENED, lambda: builder.static(width), cost, ratio, description, NO_VARIANT)
    return [conditional, static, widened]


def first_start(task: Task, source: Source) -> Start | None:
    """The weights that the first network of a run begins with; None for fresh ones."""
    name = STATIC if task.config.variant == NO_VARIANT else CONDITIONAL
    return NetworkBuilder(task, source).start(name)


def _experts(network: nn.Module) -> str:
    """The numbers of experts of its layers: "8", or "4/8" where they differ."""
    return "/".join(map(str, sorted({layer.num_experts for _, layer in conditional_layers(network)})))


def build_network(task: Task, source: Source, name: str) -> nn.Module:
    """One network of a run as `plan_networks` would build it, without the weights that it began with."""
    planner = _Planner(task, source, fresh=True)
    if name == CONDITIONAL:
        return planner.builder.conditional()
    if name == STATIC:
        return planner.builder.static()
    return planner.builder.static(planner.matching_width(planner.cost(planner.builder.conditional()).macs))


def _require_pixels(config: TrainConfig, source: Source, network: nn.Module) -> None:
    """Raise `ArgumentError` where the images are smaller than the network's total stride."""
    info: Any = getattr(network, "feature_info", None)
    levels = getattr(info, "info", info)
    total = max((level["reduction"] for level in levels), default=1) if isinstance(levels, list) else 1
    side = min(source.image_size)
    if side < total:
        rule = f"is smaller than the total stride of {config.model}, {total}"
        remedy = f"pass --output-stride {SMALL_INPUT_STRIDES[0]} or less, or --input-size {total} or more"
        raise argument_error("train", "input_size", side, rule, remedy)


def overhead_advice(task: Task, source: Source, specs: Sequence[NetworkSpec]) -> Iterator[str]:
    """One line where the conditional network pays more than 8 % beside its twin: what a limit of 5 % would change."""
    spec = next((spec for spec in specs if spec.variant != NO_VARIANT), None)
    if spec is None or spec.ratio <= 1 + NOTICED_OVERHEAD or task.config.max_overhead is not None:
        return
    begin = f"notice: the conditional network has {spec.ratio - 1:.1%} more multiply-adds than its static twin; "
    try:
        planner = _Planner(task_of(replace(task.config, max_overhead=ADVISED_OVERHEAD)), source)
        ratio = planner.cost(planner.builder.conditional()).macs * spec.ratio / spec.cost.macs
    except ArgumentError as error:
        yield f"{begin}--max-overhead {ADVISED_OVERHEAD:g} would not help ({str(error).rpartition(': ')[2]})"
        return
    yield (
        f"{begin}with --max-overhead {ADVISED_OVERHEAD:g} it is {ratio - 1:.1%}: layers that see few pixels stay static"
    )


def matching_width(task: Task, source: Source) -> float:
    """The `width` of the static network that has the multiply-adds of the conditional one of a run, within 2 %.

    Raises `ArgumentError` where there is none.
    """
    planner = _Planner(task, source)
    return task.config.width * planner.matching_width(planner.cost(planner.builder.conditional()).macs)


class _Planner:
    """Prices what a builder builds."""

    def __init__(self, task: Task, source: Source, *, fresh: bool = False) -> None:
        self.builder = NetworkBuilder(task, source, fresh=fresh)
        self.input_size = (source.channels, *source.image_size)

    def cost(self, network: nn.Module) -> Cost:
        counted = count(network, self.input_size)
        return Cost(counted.macs, counted.params)

    def matching_width(self, macs: int) -> float:
        return find_width(lambda widening: self.cost(self.builder.static(widening)).macs, macs)


def find_width(macs_at: Callable[[float], int], target: int) -> float:
    """The width factor whose multiply-adds come closest to `target`, by bisection (channels are whole numbers).

    Raises `ArgumentError` where none comes within 2 %.
    """
    low, high = 1.0, 1.5
    while macs_at(high) < target:
        low, high = high, 1.5 * high
    best, best_error = low, abs(macs_at(low) / target - 1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        macs = macs_at(middle)
        error = abs(macs / target - 1)
        if error < best_error:
            best, best_error = middle, error
        if best_error < _CLOSE_ENOUGH:
            break
        low, high = (middle, high) if macs < target else (low, middle)
    if best_error > WIDTH_TOLERANCE:
        raise ArgumentError(
            f"--twin: no width brings the static network within {WIDTH_TOLERANCE:.0%} of {target:,} multiply-adds; the "
            f"closest, {best:.4g}, is {best_error:.1%} off. Train without --twin"
        )
    return best
