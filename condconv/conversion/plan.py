"""A conversion before it happens: which layers, why not the others, which routers, at what price."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import nn

from condconv.arguments import a_module, choice, integer
from condconv.conversion.apply import Step, apply_steps, refuse_inference_form
from condconv.conversion.overhead import convolution_macs, layer_overhead, mixing_macs, too_dear
from condconv.conversion.select import Targets, select
from condconv.conversion.sharing import Group, Sharing, share_routing
from condconv.conversion.sites import Survey, survey
from condconv.conversion.upcycle import constant_scale
from condconv.counting.count import paper_cost
from condconv.counting.table import render
from condconv.counting.trace import Call, Inputs
from condconv.errors import ConversionError
from condconv.layers import RouterFactory
from condconv.layers.base import made_router
from condconv.routers import Router
from condconv.variants import Share, Variant, variants

Init = Literal["upcycle", "fresh"]

_DEFAULT: Any = "the variant's default"


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of the network, converted or not; or a router that several of them share."""

    name: str
    kind: str
    converted: bool
    why: str
    """Of a skipped layer: the reason. Of a converted one: who routes it."""
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
    variant: Variant
    num_experts: int
    init: Init
    layers: tuple[PlannedLayer, ...]
    params_before: int
    macs_before: int | None
    _steps: tuple[Step, ...] = field(repr=False)
    _groups: tuple[Group, ...] = field(repr=False)
    _router: RouterFactory = field(repr=False)
    _applied: bool = field(default=False, repr=False)

    @property
    def converted(self) -> tuple[str, ...]:
        """Names of the layers that `apply` replaces, by depth."""
        return tuple(step.name for step in self._steps)

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
        if not self._steps:
            reasons = Counter(layer.why for layer in self.layers)
            shown = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(8))
            raise ConversionError(f"Plan.apply: no layer can be converted: {shown}")
        made = apply_steps(self.model, self._steps, self._groups, self._router, self.num_experts, self.init)
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
        lines.append(["whole model", "", f"{len(self._steps)} layers", "", *map(_number, sums), _share(self.overhead)])
        note = "" if self.macs_before is not None else "; pass input_size for multiply-adds and depth by execution"
        title = f"conversion to {self.variant.name!r}: {self.num_experts} experts, init={self.init!r}"
        table = render([head, *lines], left=4)
        return f"{title} (multiply-adds by the convention 'paper'{note})\n{table}{self._instead()}"

    def _instead(self) -> str:
        """What a static network would do with the same multiply-adds: they grow with the square of the width."""
        if self.overhead is None:
            return ""
        return (
            f"\na static network of the same multiply-adds would be {math.sqrt(1 + self.overhead):.3f} times as wide"
        )


def plan(
    model: nn.Module,
    variant: str = "condconv",
    *,
    targets: Targets = None,
    num_experts: int | None = None,
    share: Share = _DEFAULT,
    init: Init = "upcycle",
    input_size: Inputs | None = None,
    router: RouterFactory | None = None,
    max_overhead: float | None = None,
) -> Plan:
    """Plan the conversion of selected layers of any network; nothing is changed yet.

    Args:
        model: any network in eager PyTorch.
        variant: registry name, e.g. "condconv" or "dynamic_convolution".
        targets: a kind ("pointwise", "depthwise", "dense", "transposed", "linear"), "last N blocks", "last N stages", a
            regex searched for in layer names, a predicate (name, module) -> bool, or several of them. None: the
            variant's placement (condconv: the second half of the convolutions; dynamic_convolution: all but the first).
        num_experts: the variant's default where None.
        share: which layers share a router: those of a "block", of the "network", of that many consecutive blocks, of
            {name: regex}, or None, every layer for itself. The variant's default where left out.
        init: "upcycle" keeps the network's function exactly; "fresh" draws new experts.
        input_size: (C, *space) of one example, or example inputs. Without it depth is the order of the modules, and
            multiply-adds are unknown.
        router: factory (in_channels, num_experts) → router; the variant's default where None.
        max_overhead: leave out layers whose mixing costs more than this share of their convolution, n / (H' W'); needs
            `input_size`. None: no limit.

    Raises:
        UnknownNameError: no such variant.
        ArgumentError: an argument out of range, or targets that match no layer.
        ConversionError: the model is compiled or wrapped, or the router's gate cannot be upcycled.
    """
    a_module("plan", "model", model)
    chosen = variants[variant]
    n = integer("plan", "num_experts", chosen.num_experts if num_experts is None else num_experts, 1)
    choice("plan", "init", init, ("upcycle", "fresh"))
    if router is not None:
        made_router("plan", router, 8, n)
    refuse_inference_form(model, "plan")
    found = survey(model, chosen, input_size)
    selection = select(found, targets, chosen)
    names = [name for name, site in found.sites.items() if name in selection.chosen and site.obstacle is None]
    dear = too_dear(found, names, n, max_overhead)
    names = [name for name in names if name not in dear]
    sharing = share_routing(found, names, chosen.share if share is _DEFAULT else share)
    make = router or chosen.router
    if init == "upcycle":
        _check_gate(make, n)
    steps = tuple(_step(found, name, chosen, sharing) for name in names)
    rows = _Rows(found, sharing, make, n)
    why_not = {**selection.why_not, **dear}
    skipped = {name: found.sites[name].obstacle or why_not.get(name, "") for name in found.sites}
    layers = [rows.converted(name) if name in names else rows.skipped(name, skipped[name]) for name in found.sites]
    layers += [rows.router(group) for group in sharing.groups]
    params = sum(p.numel() for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter))
    macs = None if found.trace is None else sum(sum(cost) for cost in paper_cost(model, found.trace)[0].values())
    return Plan(model, chosen, n, init, tuple(layers), params, macs, steps, sharing.groups, make)


def convert(
    model: nn.Module,
    variant: str = "condconv",
    *,
    targets: Targets = None,
    num_experts: int | None = None,
    share: Share = _DEFAULT,
    init: Init = "upcycle",
    input_size: Inputs | None = None,
    router: RouterFactory | None = None,
    max_overhead: float | None = None,
) -> nn.Module:
    """Plan and apply in one call: convert selected layers of `model` in place and return it (see `plan`).

    A model that is itself one layer is replaced: use the returned module.
    """
    made = plan(
        model,
        variant,
        targets=targets,
        num_experts=num_experts,
        share=share,
        init=init,
        input_size=input_size,
        router=router,
        max_overhead=max_overhead,
    )
    return made.apply()


def _check_gate(make: RouterFactory, num_experts: int) -> None:
    with torch.random.fork_rng(devices=[]):
        constant_scale(make(4, num_experts), "plan")


def _step(found: Survey, name: str, variant: Variant, sharing: Sharing) -> Step:
    module = found.sites[name].module
    layer = variant.layer_for(module)
    assert layer is not None
    return Step(name, module, layer, own_router=name in sharing.own)


class _Rows:
    """The rows of the table: prices before and after, by the same rule as `count`."""

    def __init__(self, found: Survey, sharing: Sharing, router: RouterFactory, num_experts: int) -> None:
        self._found = found
        self._own = sharing.own
        self._router = router
        self._n = num_experts
        self._source = {name: group.source for group in sharing.groups for name in group.layers}

    def skipped(self, name: str, why: str) -> PlannedLayer:
        params, macs = self._before(name)
        overhead = layer_overhead(self._found, name, self._n)
        return PlannedLayer(name, self._found.sites[name].kind, False, why, params, params, macs, macs, overhead)

    def converted(self, name: str) -> PlannedLayer:
        site = self._found.sites[name]
        params, macs = self._before(name)
        calls = self._calls(name)
        after = params * self._n
        price = None if macs is None else macs + mixing_macs(self._found, name, self._n)
        overhead = layer_overhead(self._found, name, self._n)
        if name not in self._own:
            why = self._source[name] or "the network"
            return PlannedLayer(name, site.kind, True, why, params, after, macs, price, overhead)
        channels = cast(Any, site.module).in_features if site.kind == "linear" else cast(Any, site.module).in_channels
        router = self._make(channels)
        for call in calls:
            price = (price or 0) + _routing(router, cast(torch.Tensor, call.input), site.kind == "linear")
        why = "itself" + (f": {self._own[name]}" if self._own[name] else "")
        after += sum(p.numel() for p in router.parameters())
        return PlannedLayer(name, site.kind, True, why, params, after, macs, price, overhead)

    def router(self, group: Group) -> PlannedLayer:
        router = self._make(group.in_channels)
        calls = self._calls(group.source)
        macs = None if self._found.trace is None else 0
        for call in calls:
            macs = (macs or 0) + _routing(router, cast(torch.Tensor, call.input), group.channels_last)
        params = sum(p.numel() for p in router.parameters())
        name = f"{group.source}.router" if group.source else "router"
        before = None if macs is None else 0
        return PlannedLayer(name, "router", True, f"shared by {len(group.layers)}", 0, params, before, macs)

    def _make(self, channels: int) -> Router:
        with torch.random.fork_rng(devices=[]):
            return self._router(channels, self._n)

    def _calls(self, name: str) -> Sequence[Call]:
        return [] if self._found.trace is None else self._found.trace.of(name)

    def _before(self, name: str) -> tuple[int, int | None]:
        module = self._found.sites[name].module
        lazy = nn.parameter.UninitializedParameter
        params = sum(p.numel() for p in module.parameters() if not isinstance(p, lazy))
        return params, convolution_macs(self._found, name)


def _routing(router: Router, x: torch.Tensor, channels_last: bool) -> int:
    """Multiply-adds of a router on x (B, C, *space), or (B, *positions, C)."""
    space = x.shape[1:-1] if channels_last else x.shape[2:]
    return x.shape[0] * sum(router.macs(space).values())


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
