"""The networks of one run: the conditional one, its static twin, and a static one widened to its multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from condconv.conversion import convert
from condconv.counting import count
from condconv.data import Source
from condconv.errors import ArgumentError
from condconv.models import create_model, initialise_experts, static_twin
from condconv.registry import unknown_name_message
from condconv.training.config import SMALL_INPUT, SMALL_INPUT_STRIDES, SMALLEST_MAP, TrainConfig
from condconv.training.routing import conditional_layers
from condconv.variants import variants

CONDITIONAL, STATIC, WIDENED = "conditional", "static", "widened"
NO_VARIANT = "none"
WIDTH_TOLERANCE = 0.02
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


def output_stride(config: TrainConfig, source: Source) -> int | None:
    """The asked-for total stride, else that of small inputs, else None: as published.

    A layer with H x W output pixels pays about n / (H W) of its convolution for mixing, so below 64 pixels the network
    downsamples by 4, or by less where the last map would be smaller than 7 x 7.
    """
    if config.output_stride is not None:
        return config.output_stride
    side = min(source.image_size)
    if side >= SMALL_INPUT:
        return None
    return next((stride for stride in SMALL_INPUT_STRIDES if side // stride >= SMALLEST_MAP), 1)


def plan_networks(config: TrainConfig, source: Source) -> list[NetworkSpec]:
    """The networks to train, in order. Raises `ArgumentError` for an unknown model or variant."""
    if config.variant != NO_VARIANT and config.variant not in variants:
        names = [*variants.names(), NO_VARIANT]
        raise ArgumentError(f"--variant: {unknown_name_message('variant', config.variant, names)}")
    builder = _Builder(config, source)
    static = builder.spec(STATIC, builder.static, "the network with ordinary, static convolutions")
    if config.variant == NO_VARIANT:
        return [static]
    conditional = builder.spec(CONDITIONAL, builder.conditional, builder.conditional_description())
    if not config.twin:
        return [conditional]
    width = builder.matching_width(conditional.cost.macs)
    widened = builder.spec(WIDENED, lambda: builder.static(width), f"static, {width:.4g} times as wide")
    return [conditional, static, widened]


def matching_width(config: TrainConfig, source: Source) -> float:
    """The `width` of the static network that has the multiply-adds of the conditional one of `config`, within 2 %.

    Raises `ArgumentError` where there is none.
    """
    builder = _Builder(config, source)
    return config.width * builder.matching_width(builder.cost(builder.conditional).macs)


class _Builder:
    """Builds each network from the same seed."""

    def __init__(self, config: TrainConfig, source: Source) -> None:
        self.config = config
        self.input_size = (source.channels, *source.image_size)
        self.arguments: dict[str, Any] = {"num_classes": len(source.classes), "in_chans": source.channels}
        stride = output_stride(config, source)
        if stride is not None:
            self.arguments["output_stride"] = stride
        if config.width != 1.0:
            self.arguments["width_multiplier"] = config.width

    def static(self, widening: float = 1.0) -> nn.Module:
        torch.manual_seed(self.config.seed)
        arguments = dict(self.arguments)
        if widening != 1.0:
            arguments["width_multiplier"] = self.config.width * widening
        if self._is_conditional_name():
            return static_twin(self.config.model, **arguments)
        return create_model(self.config.model, **arguments)

    def matching_width(self, macs: int) -> float:
        return find_width(lambda widening: self.cost(lambda: self.static(widening)).macs, macs)

    def conditional(self) -> nn.Module:
        torch.manual_seed(self.config.seed)
        if self._is_conditional_name():
            return create_model(self.config.model, num_experts=self.config.num_experts, **self.arguments)
        model = create_model(self.config.model, **self.arguments)
        model = convert(model, self.config.variant, num_experts=self.config.num_experts, init="fresh")
        initialise_experts(model)  # as the static twin draws its kernels, so that the two start alike
        return model

    def _is_conditional_name(self) -> bool:
        return bool(conditional_layers(create_model(self.config.model, **self.arguments)))

    def conditional_description(self) -> str:
        experts = sorted(set(conditional_layers(self.conditional()).values()))
        return f"{self.config.variant}, {'/'.join(map(str, experts))} experts"

    def cost(self, build: Callable[[], nn.Module]) -> Cost:
        counted = count(build(), self.input_size)
        return Cost(counted.macs, counted.params)

    def spec(self, name: str, build: Callable[[], nn.Module], description: str) -> NetworkSpec:
        cost = self.cost(build)
        return NetworkSpec(name, build, cost, cost.macs / self.cost(self.static).macs, description)


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
