"""What a plan shows, and how it is carried out: the layers or blocks of a network before and after."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from torch import nn

from condconv.counting.table import render
from condconv.errors import ConversionError
from condconv.variants import BlockVariant, Variant

Init = Literal["upcycle", "fresh"]
INITS = get_args(Init)


@dataclass(frozen=True)
class PlannedLayer:
    """One layer or block of the network, converted or not; or a router that several layers share."""

    name: str
    kind: str
    converted: bool
    why: str
    """Of what is skipped: the reason. Of what is converted: who routes it."""
    params_before: int
    params_after: int
    macs_before: int | None
    """Multiply-adds by the papers' convention; None without `input_size`."""
    macs_after: int | None
    overhead: float | None = None
    """Of a layer that can be converted: mixing over convolution, n / (H' W'); None without `input_size`."""


@dataclass
class Plan:
    """What `plan` found; `apply()` carries it out, once."""

    model: nn.Module
    variant: Variant | BlockVariant
    num_experts: int | None
    """None for a variant of blocks."""
    init: Init
    layers: tuple[PlannedLayer, ...]
    converted: tuple[str, ...]
    """Names of the layers or blocks that `apply` replaces, by depth."""
    params_before: int
    macs_before: int | None
    _carry_out: Callable[[], nn.Module] = field(repr=False)
    _applied: bool = field(default=False, repr=False)

    @property
    def params_after(self) -> int:
        """Parameters of the converted model."""
        return self.params_before + sum(layer.params_after - layer.params_before for layer in self.layers)

    @property
    def macs_after(self) -> int | None:
        """Multiply-adds of the converted model by the papers' convention, or None without `input_size`."""
        if self.macs_before is None:
            return None
        return self.macs_before + sum((row.macs_after or 0) - (row.macs_before or 0) for row in self.layers)

    @property
    def overhead(self) -> float | None:
        """Multiply-adds that mixing and routing add, over those before; None without `input_size`."""
        return None if not self.macs_before else cast(int, self.macs_after) / self.macs_before - 1

    def apply(self, model: nn.Module | None = None) -> nn.Module:
        """Convert the model in place and return it (a new module where the model is itself a converted layer).

        Args:
            model: the model that was planned, as a safeguard; any other is refused.

        Raises:
            ConversionError: applied before, another model, a model that has changed since, or nothing to convert.
        """
        if model is not None and model is not self.model:
            raise ConversionError("Plan.apply: this plan was made for another model; make a plan for this one")
        if self._applied:
            raise ConversionError("Plan.apply: this plan was applied before; make a new plan")
        if not self.converted:
            reasons = Counter(layer.why for layer in self.layers)
            shown = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(8))
            raise ConversionError(f"Plan.apply: no {self._unit} can be converted: {shown}")
        made = self._carry_out()
        self._applied = True
        return made

    def __str__(self) -> str:
        head = ["layer", "kind", "", "why / routed by", "parameters", "after", "multiply-adds", "after", "overhead"]
        lines = [
            [row.name or "(model)", row.kind, "converted" if row.converted else "skipped", row.why]
            + [_number(v) for v in (row.params_before, row.params_after, row.macs_before, row.macs_after)]
            + [_share(row.overhead)]
            for row in self.layers
        ]
        sums = (self.params_before, self.params_after, self.macs_before, self.macs_after)
        total = f"{len(self.converted)} {self._unit}s"
        lines.append(["whole model", "", total, "", *map(_number, sums), _share(self.overhead)])
        note = "" if self.macs_before is not None else "; pass input_size for multiply-adds and depth by execution"
        experts = "" if self.num_experts is None else f"{self.num_experts} experts, "
        title = f"conversion to {self.variant.name!r}: {experts}init={self.init!r}"
        table = render([head, *lines], left=4)
        return f"{title} (multiply-adds by the convention 'paper'{note})\n{table}{self._instead()}"

    @property
    def _unit(self) -> str:
        return "block" if self.num_experts is None else "layer"

    def _instead(self) -> str:
        """What a static network would do with the same multiply-adds: they grow with the square of the width."""
        if self.overhead is None:
            return ""
        return f"\na static network of the same multiply-adds would be {math.sqrt(1 + self.overhead):.3f} times as wide"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
