"""A conversion before it happens: which layers, why not the others, which routers, at what price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from condconv.arguments import a_module, choice, experts
from condconv.banks import Bank
from condconv.conversion.apply import Step, apply_steps, refuse_inference_form
from condconv.conversion.gating import plan_blocks
from condconv.conversion.overhead import convolution_macs, layer_overhead, mixing_macs, too_dear
from condconv.conversion.planned import INITS, Init, Plan, PlannedLayer
from condconv.conversion.select import Targets, select
from condconv.conversion.sharing import Group, Sharing, share_routing
from condconv.conversion.sites import Survey, survey
from condconv.conversion.together import STAGE, together
from condconv.conversion.upcycle import upcycle_bank
from condconv.counting.count import own_sizes, paper_cost
from condconv.counting.trace import Call, Inputs
from condconv.errors import SiteError
from condconv.layers import RouterFactory, made_router, site_of
from condconv.routers import Router
from condconv.variants import Share, Variant, block_variants, variants

_DEFAULT: Any = "the variant's default"


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
        variant: registry name, e.g. "condconv" or "dynamic_convolution"; or that of a variant of blocks,
            "gated_block", which takes `targets`, `init` and `input_size` alone, and needs the last.
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
    if variant in block_variants:
        given = {"num_experts": num_experts, "share": share, "router": router, "max_overhead": max_overhead, **options}
        foreign = {name: value for name, value in given.items() if value is not None and value is not _DEFAULT}
        return plan_blocks(model, block_variants[variant], targets, init, input_size, foreign)
    chosen = variants[variant]
    n = experts("plan", chosen.design.num_experts if num_experts is None else num_experts)
    common = chosen.design.common
    apart = STAGE if common is None else options.pop(common.option, STAGE)
    chosen.design.check_options("plan", options)
    choice("plan", "init", init, INITS)
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
    carry_out = partial(apply_steps, model, steps, sharing.groups, router, init, in_common)
    return Plan(model, chosen, n, init, tuple(layers), tuple(names), params, macs, carry_out)


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
