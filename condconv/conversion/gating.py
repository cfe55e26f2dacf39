"""Converting blocks: one that returns the shape that it was given can be left out, and gets a gate around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from condconv.arguments import choice
from condconv.conversion.apply import Original, fingerprints, refuse_inference_form, replace_layer
from condconv.conversion.blocks import find_blocks, has_weights
from condconv.conversion.planned import INITS, Init, Plan, PlannedLayer
from condconv.conversion.select import Targets, matching_names
from condconv.counting.count import paper_cost
from condconv.counting.rules import kind_of
from condconv.counting.trace import Call, Inputs, trace
from condconv.errors import argument_error
from condconv.layers import ConditionalBlock
from condconv.routers import Router
from condconv.variants import BlockVariant


def plan_blocks(
    model: nn.Module,
    variant: BlockVariant,
    targets: Targets,
    init: Init,
    input_size: Inputs | None,
    foreign: Mapping[str, Any],
) -> Plan:
    """Plan to put gates around blocks; see `condconv.plan`.

    Args:
        model: the network.
        variant: of blocks.
        targets: a regex searched for in the blocks' names, a predicate (name, module) -> bool, or several; None: all.
        init: "upcycle" begins with gates that are open for every example, "fresh" with a router as it is drawn.
        input_size: (C, *space) of one example, or example inputs.
        foreign: arguments of `condconv.plan` that only variants of layers have.

    Raises:
        ArgumentError: an argument of variants of layers, no `input_size`, or targets that match no block.
    """
    for name, value in foreign.items():
        rule = f"is for variants of layers, and {variant.name} leaves layers as they are"
        raise argument_error("plan", name, value, rule, "leave it out")
    if input_size is None:
        rule = "does not tell which blocks return the shape that they are given"
        raise argument_error("plan", "input_size", None, rule, "give (C, *space)")
    choice("plan", "init", init, INITS)
    refuse_inference_form(model, "plan")
    watched = trace(model, input_size)
    modules = dict(model.named_modules())
    called = dict.fromkeys(call.name for call in watched.calls)
    found = find_blocks(model, [name for name in called if has_weights(modules[name])], called)
    blocks = {block.name: modules[block.name] for block in found}
    wanted = _targeted(blocks, targets)
    cost = {name: sum(macs) for name, macs in paper_cost(model, watched)[0].items()}
    channels: dict[str, int] = {}
    rows = []
    for name, block in blocks.items():
        macs = sum(value for layer, value in cost.items() if layer.startswith(f"{name}."))
        params = sum(parameter.numel() for parameter in block.parameters())
        more_params, more_macs = 0, 0
        why = _obstacle(modules, name, watched.of(name)) or ("" if name in wanted else "not selected")
        if not why:
            x = cast(Tensor, watched.of(name)[0].input)
            channels[name] = x.shape[1]
            router = _router_of(variant, block, channels[name])
            more_params = sum(parameter.numel() for parameter in router.parameters())
            more_macs = x.shape[0] * sum(router.macs(x.shape[2:]).values()) * len(watched.of(name))
        after = (params, params + more_params, macs, macs + more_macs)
        rows.append(PlannedLayer(name, type(block).__name__, not why, why or "itself", *after))
    total = sum(parameter.numel() for parameter in model.parameters())
    carry_out = partial(wrap_blocks, model, variant, channels, init)
    return Plan(model, variant, None, init, tuple(rows), tuple(channels), total, sum(cost.values()), carry_out)


def wrap_blocks(model: nn.Module, variant: BlockVariant, channels: Mapping[str, int], init: Init) -> nn.Module:
    """Put gates around blocks, by their names and the channels that they see, in place; return the model."""
    for name, in_channels in channels.items():
        block = model.get_submodule(name)
        made, like = variant.block(block, in_channels), next(block.parameters())
        made.router.to(like)
        made.train(block.training)
        if init == "upcycle":
            made.router.reset_to_constant()
        begun = tuple(fingerprints(made.router.parameters(), like.dtype))
        object.__setattr__(made, "original", Original(block, begun, like.dtype))
        replace_layer(model, block, made)
    return model


def _targeted(blocks: Mapping[str, nn.Module], targets: Targets) -> set[str]:
    if targets is None:
        return set(blocks)
    found: set[str] = set()
    for target in [targets] if isinstance(targets, str) or callable(targets) else targets:
        if callable(target):
            found |= {name for name, block in blocks.items() if target(name, block)}
        else:
            found |= set(matching_names(target, blocks, "targets"))
    return found


def _obstacle(modules: Mapping[str, nn.Module], name: str, calls: Sequence[Call]) -> str | None:
    """Why a block cannot be left out, or None."""
    if isinstance(modules[name.rpartition(".")[0]], ConditionalBlock):
        return "has a gate already"
    if not any((kind_of(module) or "").endswith("convolution") for module in modules[name].modules()):
        return "has no convolution, so that it is not known which dimension has the channels"
    for call in calls:
        if call.input is None or call.output is None or call.arguments != 1 or not call.starts_with_tensor:
            return "is called with more than a tensor, or returns none"
        if call.input.shape != call.output.shape:
            return f"makes {tuple(call.output.shape[1:])} of {tuple(call.input.shape[1:])}, and cannot be left out"
    return None


def _router_of(variant: BlockVariant, block: nn.Module, in_channels: int) -> Router:
    with torch.random.fork_rng(devices=[]):
        return variant.block(block, in_channels).router
