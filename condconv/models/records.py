"""What conversions did to a network, read off it, in words that JSON can hold; and the same conversions once more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from condconv.conversion import convert, forget_originals
from condconv.conversion.apply import conditional_layers
from condconv.errors import CheckpointError
from condconv.layers import ConditionalLayer
from condconv.models.loading import routers_of
from condconv.routers import PooledLinear, Router, RoutingScope, SigmoidGate, SoftmaxGate, SqueezeExcite, TopKGate
from condconv.variants import Variant, variants

Record = dict[str, Any]

INSTEAD = (
    "save the weights alone with safetensors.torch.save_model(model, file), build the network again as you built it, "
    "and load them with condconv.models.load_weights(model, file)"
)
"""What to do with a network that no record describes."""


def conversion_records(model: nn.Module) -> list[Record]:
    """Which layers of ``model`` are conditional: a record for each variant and number of experts.

    A record has the layers' names, which of them share a router, and, where they are not the variant's default ones,
    the routers, by the channels that they see.

    Raises:
        CheckpointError: routers or layers that a record cannot describe.
    """
    sources = {
        module.routed_scope: name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "routed_scope", None), RoutingScope)
    }
    routers = routers_of(model)
    records: dict[tuple[str, int], Record] = {}
    for name, layer in conditional_layers(model):
        variant = _variant_of(name, layer)
        empty: Record = {
            "variant": variant.name, "num_experts": layer.num_experts, "layers": [], "shared": {}, "routers": {},
        }  # fmt: skip
        record = records.setdefault((variant.name, layer.num_experts), empty)
        record["layers"].append(name)
        if layer.scope is not None:
            record["shared"].setdefault(sources[layer.scope], []).append(name)
        if name in routers:
            _note_router(record["routers"], name, routers[name])
    for record in records.values():
        _leave_out_defaults(record)
    return list(records.values())


def convert_again(model: nn.Module, records: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Convert a static network as the records say, with fresh experts."""
    for record in records:
        names = set(record["layers"])
        share = {source or "network": _one_of(layers) for source, layers in record["shared"].items()}
        routers = record.get("routers")
        model = convert(
            model,
            record["variant"],
            targets=lambda name, _, names=names: name in names,
            num_experts=record["num_experts"],
            share=share or None,
            init="fresh",
            router=None if routers is None else _Routers(routers),
        )
    return forget_originals(model)


class _Routers:
    """A factory of the recorded routers."""

    def __init__(self, by_channels: Mapping[str, Mapping[str, Any]]) -> None:
        self.by_channels = by_channels

    def __call__(self, in_channels: int, num_experts: int) -> Router:
        # A plan tries a factory with channels of its own first.
        about = dict(self.by_channels.get(str(in_channels)) or next(iter(self.by_channels.values())))
        return Router(in_channels, num_experts, **about | {"gate": _gate(about["gate"])})


def _variant_of(name: str, layer: ConditionalLayer) -> Variant:
    for variant in map(variants.__getitem__, variants):
        if isinstance(layer, variant.layers):
            return variant
    raise CheckpointError(
        f"save_pretrained: {name} is a {type(layer).__name__}, which no registered variant has; register the variant "
        f"with condconv.variants.variants.register, or {INSTEAD}"
    )


def _note_router(found: dict[str, Record], name: str, router: Router) -> None:
    about = _described(name, router)
    if found.setdefault(str(router.in_channels), about) != about:
        raise CheckpointError(
            f"save_pretrained: the router of {name} differs from another one for {router.in_channels} channels, and a "
            f"configuration describes one router for each number of channels; {INSTEAD}"
        )


def _leave_out_defaults(record: Record) -> None:
    """Say nothing of routers if all of them are the variant's default ones."""
    make, experts = variants[record["variant"]].router, record["num_experts"]
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        default = {
            channels: _described("the default", make(int(channels), experts)) for channels in record["routers"]
        }
    if record["routers"] == default:
        del record["routers"]


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
        "normalise": router.norm is not None,
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


_GATES: dict[str, type[SigmoidGate] | type[SoftmaxGate]] = {"sigmoid": SigmoidGate, "softmax": SoftmaxGate}


def _one_of(names: list[str]) -> str:
    return "^(?:" + "|".join(re.escape(name) for name in names) + ")$"
