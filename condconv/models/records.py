"""What conversions did to a network, read off it, in words that JSON can hold; and the same conversions once more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from condconv.coefficients import Slices
from condconv.conversion import convert, forget_originals
from condconv.conversion.apply import conditional_blocks, conditional_layers
from condconv.conversion.gating import wrap_blocks
from condconv.errors import CheckpointError
from condconv.layers import ConditionalLayer
from condconv.models.loading import routers_of
from condconv.routers import (
    HiddenBatchNorm,
    HiddenLayerNorm,
    PooledLinear,
    Router,
    RoutingScope,
    SigmoidGate,
    SoftmaxGate,
    SqueezeExcite,
    TopKGate,
)
from condconv.site import ConvSite
from condconv.variants import Variant, block_variants, variants

Record = dict[str, Any]

INSTEAD = (
    "save the weights alone with safetensors.torch.save_model(model, file), build the network again as you built it, "
    "and load them with condconv.models.load_weights(model, file)"
)
"""What to do with a network that no record describes."""


def conversion_records(model: nn.Module) -> list[Record]:
    """Which layers of ``model`` are conditional: a record for each variant, its number of experts and its options.

    A record of layers has their names, which of them share a router, which have banks with something in common, and,
    where they are not the variant's default ones, the routers, by the channels that they see. One of blocks has, by
    their names, the channels that they see; it comes first, since layers inside have the names that it gives them.

    Raises:
        CheckpointError: routers or layers that a record cannot describe.
    """
    sources = {
        module.routed_scope: name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "routed_scope", None), RoutingScope)
    }
    routers = routers_of(model)
    records: dict[tuple[Any, ...], Record] = {}
    layers: dict[tuple[Any, ...], dict[str, ConditionalLayer]] = {}
    holders: dict[nn.Module, str] = {}
    for name, layer in conditional_layers(model):
        variant, experts = _variant_of(name, layer).name, layer.num_experts
        key = (variant, experts, *sorted(layer.options.items()))
        empty: Record = {"variant": variant, "num_experts": experts, "layers": [], "shared": {}}
        record = records.setdefault(key, {**empty, "options": dict(layer.options)} if layer.options else empty)
        record["layers"].append(name)
        layers.setdefault(key, {})[name] = layer
        if layer.scope is not None:
            record["shared"].setdefault(sources[layer.scope], []).append(name)
        if (common := layer.bank.common()) is not None:
            holder = holders.setdefault(common, name)
            record.setdefault("together", {}).setdefault(holder, []).append(name)
    for key, record in records.items():
        mine = {name: (layer, routers[name]) for name, layer in layers[key].items() if name in routers}
        if not all(_is_default(router, layer) for layer, router in mine.values()):
            record["routers"] = _by_channels({name: router for name, (_, router) in mine.items()})
    return [*_block_records(model), *records.values()]


def convert_again(model: nn.Module, records: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Convert a static network as the records say, with fresh experts."""
    for record in records:
        if "blocks" in record:
            model = wrap_blocks(model, block_variants[record["variant"]], record["blocks"], "fresh")
            continue
        names = set(record["layers"])
        share = {source or "network": _one_of(layers) for source, layers in record["shared"].items()}
        routers, common = record.get("routers"), variants[record["variant"]].design.common
        together: dict[str, Any] = {}
        if common is not None:
            together[common.option] = {holder: _one_of(layers) for holder, layers in record["together"].items()}
        model = convert(
            model,
            record["variant"],
            targets=lambda name, _, names=names: name in names,
            num_experts=record["num_experts"],
            share=share or None,
            init="fresh",
            router=None if routers is None else _Routers(routers),
            **record.get("options", {}),
            **together,
        )
    return forget_originals(model)


def _block_records(model: nn.Module) -> list[Record]:
    records: dict[str, Record] = {}
    for name, block in conditional_blocks(model):
        variant = next(known for known in block_variants if type(block) is block_variants[known].block)
        record = records.setdefault(variant, {"variant": variant, "blocks": {}})
        record["blocks"][name] = block.router.in_channels
    return list(records.values())


class _Routers:
    """A factory of the recorded routers."""

    def __init__(self, by_channels: Mapping[str, Mapping[str, Any]]) -> None:
        self.by_channels = by_channels

    def __call__(self, site: ConvSite, slices: Slices) -> Router:
        if str(site.in_channels) not in self.by_channels:
            raise CheckpointError(
                f"no router for {site.in_channels} channels was saved; pass the network as it was before its conversion"
            )
        about = dict(self.by_channels[str(site.in_channels)])
        return Router(site.in_channels, slices, **about | {"gate": _gate(about["gate"])})


def _variant_of(name: str, layer: ConditionalLayer) -> Variant:
    for variant in map(variants.__getitem__, variants):
        if isinstance(layer, variant.layers):
            return variant
    raise CheckpointError(
        f"save_pretrained: {name} is a {type(layer).__name__}, which no registered variant has; register the variant "
        f"with condconv.variants.variants.register, or {INSTEAD}"
    )


def _is_default(router: Router, layer: ConditionalLayer) -> bool:
    with torch.random.fork_rng(devices=[]):
        default = layer.default_router(replace(layer.site, in_channels=router.in_channels), layer.slices)
    return (
        type(router) is type(default)
        and type(router.gate) is type(default.gate)
        and _shapes(router) == _shapes(default)
        and (router.dropout, router.expert_dropout) == (default.dropout, default.expert_dropout)
    )


def _shapes(router: Router) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in router.state_dict().items()}


def _by_channels(routers: Mapping[str, Router]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for name, router in routers.items():
        about = _described(name, router)
        if found.setdefault(str(router.in_channels), about) != about:
            raise CheckpointError(
                f"save_pretrained: the router of {name} differs from another one for {router.in_channels} channels, "
                f"and a configuration describes one router for each number of channels; {INSTEAD}"
            )
    return found


def _described(name: str, router: Router) -> Record:
    """The arguments of `Router` that make one like it."""
    if type(router) not in (Router, PooledLinear, SqueezeExcite) or router.previous_experts:
        kind = "hierarchical" if isinstance(router, Router) and router.previous_experts else type(router).__name__
        raise CheckpointError(
            f"save_pretrained: the router of {name} is {kind}, which a configuration cannot describe; {INSTEAD}"
        )
    hidden = router.body[0].out_features if len(router.body) > 1 else None
    return {
        "hidden_channels": hidden,
        "gate": _described_gate(name, router.gate),
        "dropout": router.dropout,
        "expert_dropout": router.expert_dropout,
        "norm": next((kind for kind, norm in _NORMS.items() if any(isinstance(m, norm) for m in router.body)), None),
    }


def _described_gate(name: str, gate: nn.Module) -> Any:
    if type(gate) is TopKGate:
        return {"k": gate.k, "noise_std": gate.noise_std, "of": _described_gate(name, gate.gate)}
    for kind, known in _GATES.items():
        if type(gate) is known:
            return kind
    raise CheckpointError(
        f"save_pretrained: the gate of {name} is a {type(gate).__name__}, which a configuration cannot describe; "
        f"{INSTEAD}"
    )


def _gate(about: Any) -> SigmoidGate | SoftmaxGate | TopKGate:
    """The gate of a description; a softmax gate's temperature comes with the weights."""
    if isinstance(about, str):
        return _GATES[about]()
    return TopKGate(_gate(about["of"]), about["k"], about["noise_std"])


_NORMS = {"batch": HiddenBatchNorm, "layer": HiddenLayerNorm}
_GATES: dict[str, type[SigmoidGate] | type[SoftmaxGate]] = {"sigmoid": SigmoidGate, "softmax": SoftmaxGate}


def _one_of(names: list[str]) -> str:
    return "^(?:" + "|".join(re.escape(name) for name in names) + ")$"
