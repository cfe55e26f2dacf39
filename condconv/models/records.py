"""What a conversion did to a network, read off the network itself, in words that JSON can hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from condconv.conversion.apply import conditional_layers
from condconv.errors import CheckpointError
from condconv.layers import ConditionalLayer
from condconv.models.loading import routers_of
from condconv.routers import Router, RoutingScope
from condconv.variants import Variant, variants


def conversion_record(model: nn.Module) -> dict[str, Any]:
    """Which layers of ``model`` are conditional, of which variant, with how many experts, and which of them share.

    Raises:
        CheckpointError: several variants or numbers of experts, or routers that are not the variant's default ones.
    """
    layers = dict(conditional_layers(model))
    kinds: set[tuple[Any, ...]] = {
        (_variant_of(name, layer).name, layer.num_experts, *sorted(layer.options.items()))
        for name, layer in layers.items()
    }
    if len(kinds) != 1:
        raise CheckpointError(
            f"save_pretrained: layers of several variants or numbers of experts ({sorted(kinds)}) cannot be described; "
            "save the weights alone with safetensors.torch.save_model"
        )
    (variant, num_experts, *options) = kinds.pop()
    for name, router in routers_of(model).items():
        _check_default(name, router, layers[name], variant)
    sources = {
        module.routed_scope: name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "routed_scope", None), RoutingScope)
    }
    shared: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer.scope is not None:
            shared.setdefault(sources[layer.scope], []).append(name)
    record = {"variant": variant, "num_experts": num_experts, "layers": list(layers), "shared": shared}
    return {**record, "options": dict(options)} if options else record


def _variant_of(name: str, layer: ConditionalLayer) -> Variant:
    for variant in map(variants.__getitem__, variants):
        if isinstance(layer, variant.layers):
            return variant
    raise CheckpointError(f"save_pretrained: {name} is a {type(layer).__name__}, which no registered variant has")


def _check_default(name: str, router: Router, layer: ConditionalLayer, variant: str) -> None:
    with torch.random.fork_rng(devices=[]):
        default = layer.default_router(replace(layer.site, in_channels=router.in_channels), layer.slices)
    same = (
        type(router) is type(default)
        and type(router.gate) is type(default.gate)
        and [tuple(p.shape) for p in router.parameters()] == [tuple(p.shape) for p in default.parameters()]
        and (router.dropout, router.expert_dropout) == (default.dropout, default.expert_dropout)
    )
    if not same:
        raise CheckpointError(
            f"save_pretrained: the router of {name} is not the default one of {variant}, which a configuration "
            "cannot describe; save the weights alone with safetensors.torch.save_model"
        )
