"""A conversion before it happens: which layers, why not the others, which routers, at what price."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn

from condconv.arguments import a_module, choice, integer
from condconv.banks import Bank
from condconv.conversion.apply import Step, apply_steps, refuse_inference_form
from condconv.conversion.overhead import convolution_macs, layer_overhead, mixing_macs, too_dear
from condconv.conversion.select import Targets, select
from condconv.conversion.sharing import Group, Sharing, share_routing
from condconv.conversion.sites import Survey, survey
from condconv.conversion.together import STAGE, together
from condconv.conversion.upcycle import upcycle_bank
from condconv.counting.count import own_sizes, paper_cost
from condconv.counting.table import render
from condconv.counting.trace import Call, Inputs
from condconv.errors import ConversionError, SiteError
from condconv.layers import RouterFactory, made_router, site_of
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
    _router: RouterFactory | None = field(repr=False)
    _together: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
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
        made = apply_steps(self.model, self._steps, self._groups, self._router, self.init, self._together)
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
        return f"\na static network of the same multiply-adds would be {math.sqrt(1 + self.overhead):.3f} times as wide"


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
    **options: Any,
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
        router: factory (site, slices) → router; the variant's default where None.
        max_overhead: leave out layers whose mixing costs more than this share of their convolution, n / (H' W'); needs
            `input_size`. None: no limit.
        options: what is special to the variant's paper; its layers take the same. Where banks of several layers have
            something in common, also which: kernel_warehouse's `warehouses` is "stage" or {name: regex}.

    Raises:
        UnknownNameError: no such variant.
        ArgumentError: an argument out of range, or targets that match no layer.
        ConversionError: the model is compiled or wrapped, or the router's gate cannot be upcycled.
    """
    a_module("plan", "model", model)
    chosen = variants[variant]
    n = integer("plan", "num_experts", chosen.design.num_experts if num_experts is None else num_experts, 1)
    common = chosen.design.common
    apart = STAGE if common is None else options.pop(common.option, STAGE)
    chosen.design.check_options("plan", options)
    choice("plan", "init", init, ("upcycle", "fresh"))
    refuse_inference_form(model, "plan")
    found = survey(model, chosen, input_size)
    selection = select(found, targets, chosen)
    free = [name for name, place in found.sites.items() if place.obstacle is None]
    groups: list[tuple[str, ...]] = [(name,) for name in free]
    if common is not None:
        groups = together(found, [name for name in free if name in selection.chosen], common.option, apart)
    banks, unsuitable = _banks(found, chosen, n, options, groups)
    names = [name for name in found.sites if name in selection.chosen and name in banks]
    dear = too_dear(found, names, banks, max_overhead)
    names = [name for name in names if name not in dear]
    if common is not None:  # What layers have in common depends on all of them.
        groups = [kept for group in groups if (kept := tuple(name for name in group if name in names))]
        banks, _ = _banks(found, chosen, n, options, groups)
    slices = {name: bank.slices for name, bank in banks.items()}
    sharing = share_routing(found, names, chosen.share if share is _DEFAULT else share, slices)
    rows = _Rows(found, sharing, banks, router or partial(chosen.design.make_router, options=options))
    if init == "upcycle" and names:
        rows.check_upcycling(names[0])
    arguments = {"num_experts": n, **options}
    steps = tuple(_step(found, name, chosen, sharing, arguments) for name in names)
    why_not = {**selection.why_not, **dear, **unsuitable}
    skipped = {name: found.sites[name].obstacle or why_not.get(name, "") for name in found.sites}
    layers = [rows.converted(name) if name in names else rows.skipped(name, skipped[name]) for name in found.sites]
    layers += [rows.router(group) for group in sharing.groups]
    params = sum(p.numel() for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter))
    macs = None if found.trace is None else sum(sum(cost) for cost in paper_cost(model, found.trace)[0].values())
    in_common = () if common is None else tuple(groups)
    return Plan(model, chosen, n, init, tuple(layers), params, macs, steps, sharing.groups, router, in_common)


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
    **options: Any,
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
        **options,
    )
    return made.apply()


def _banks(
    found: Survey,
    variant: Variant,
    num_experts: int,
    options: Mapping[str, Any],
    groups: Sequence[tuple[str, ...]],
) -> tuple[dict[str, Bank], dict[str, str]]:
    """The bank, without memory, of each layer in groups with something in common; and why others can have none."""
    banks: dict[str, Bank] = {}
    unsuitable: dict[str, str] = {}
    with torch.random.fork_rng(devices=[]):
        for group in groups:
            places = [found.sites[name] for name in group]
            sites = [site_of(place.module, place.name, place.block) for place in places]
            try:
                shared = variant.design.make_common(sites, options, "meta")
                for site, common in zip(sites, shared, strict=True):
                    banks[site.name] = variant.design.make_bank(site, num_experts, options, "meta", common=common)
            except SiteError as error:
                unsuitable |= dict.fromkeys(group, str(error))
    return banks, unsuitable


def _step(found: Survey, name: str, variant: Variant, sharing: Sharing, arguments: Mapping[str, Any]) -> Step:
    module = found.sites[name].module
    layer = variant.layer_for(module)
    assert layer is not None
    return Step(name, module, layer, name in sharing.own, arguments)


class _Rows:
    """The rows of the table: prices before and after, by the same rule as `count`."""

    def __init__(self, found: Survey, sharing: Sharing, banks: Mapping[str, Bank], router: RouterFactory) -> None:
        self._found = found
        self._own = sharing.own
        self._banks = banks
        self._router = router
        self._source = {name: group.source for group in sharing.groups for name in group.layers}

    def skipped(self, name: str, why: str) -> PlannedLayer:
        params, macs = self._before(name)
        overhead = layer_overhead(self._found, name, self._banks)
        return PlannedLayer(name, self._found.sites[name].kind, False, why, params, params, macs, macs, overhead)

    def converted(self, name: str) -> PlannedLayer:
        site = self._found.sites[name]
        params, macs = self._before(name)
        calls = self._calls(name)
        bank = self._banks[name]
        after = sum(size for module in bank.modules() for _, size in own_sizes(module))
        price = None if macs is None else macs + mixing_macs(self._found, name, bank)
        overhead = layer_overhead(self._found, name, self._banks)
        if name not in self._own:
            why = self._source[name] or "the network"
            return PlannedLayer(name, site.kind, True, why, params, after, macs, price, overhead)
        router = self._make(name)
        for call in calls:
            price = (price or 0) + _routing(router, cast(torch.Tensor, call.input), site.kind == "linear")
        why = "itself" + (f": {self._own[name]}" if self._own[name] else "")
        after += sum(p.numel() for p in router.parameters())
        return PlannedLayer(name, site.kind, True, why, params, after, macs, price, overhead)

    def router(self, group: Group) -> PlannedLayer:
        router = self._make(group.layers[0], in_channels=group.in_channels, name=group.source)
        calls = self._calls(group.source)
        macs = None if self._found.trace is None else 0
        for call in calls:
            macs = (macs or 0) + _routing(router, cast(torch.Tensor, call.input), group.channels_last)
        params = sum(p.numel() for p in router.parameters())
        name = f"{group.source}.router" if group.source else "router"
        before = None if macs is None else 0
        return PlannedLayer(name, "router", True, f"shared by {len(group.layers)}", 0, params, before, macs)

    def check_upcycling(self, name: str) -> None:
        """Raise `ConversionError` where a router cannot be made constant, or its bank not start from that."""
        bank = self._banks[name]
        upcycle_bank(bank, self._make(name), torch.empty(bank.kernel_shape, device="meta"), None, "plan")

    def _make(self, layer: str, **changes: Any) -> Router:
        place = self._found.sites[layer]
        site = replace(site_of(place.module, layer, place.block), **changes)
        with torch.random.fork_rng(devices=[]):
            return made_router("plan", self._router, site, self._banks[layer].slices)

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
