"""Swapping layers: into conditional ones, and back.

A converted layer keeps the static one that it replaced in an `Original`, a plain object: it is in neither
`parameters()` nor `state_dict()`, but deepcopy and pickle carry it along, with ties between layers intact.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from condconv.arguments import a_module, boolean
from condconv.banks import PackedBank
from condconv.conversion.same_padding import pads_same, same_padded
from condconv.conversion.sharing import Group
from condconv.conversion.upcycle import upcycle_bank
from condconv.errors import ConversionError
from condconv.layers import ConditionalBlock, ConditionalLayer, RouterFactory, TiledConv2d, made_router, site_of
from condconv.routers import Router, RoutingScope, StepWatch, annealed_gates, attach_scope, detach_scopes

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class Step:
    """One layer to replace."""

    name: str
    static: nn.Module
    conditional: type[ConditionalLayer]
    own_router: bool
    arguments: Mapping[str, Any]
    """Of the conditional layer: number of experts and options."""


@dataclass(frozen=True)
class Original:
    """Where a converted layer, or a block with a gate, comes from."""

    static: nn.Module
    digests: tuple[str, ...]
    """Of the parameters that the conversion made: the layer's and its router's, or the gate's, right after it."""
    dtype: torch.dtype


def apply_steps(
    model: nn.Module,
    steps: Sequence[Step],
    groups: Sequence[Group],
    router: RouterFactory | None,
    init: str,
    together: Sequence[tuple[str, ...]] = (),
) -> nn.Module:
    """Replace the layers and return the model; everything is built before anything is swapped.

    `together` are the names of layers whose banks have something in common.

    Raises:
        ConversionError: a layer is not where it was when the plan was made.
    """
    places = {id(step.static): list(_places(model, step.static)) for step in steps}
    for step in steps:
        if step.static is not model and not places[id(step.static)]:
            raise ConversionError(f"Plan.apply: {step.name} was replaced since the plan was made; make a new plan")
    common = _in_common(steps, together)
    made = {step.name: _build(step, router, common.get(step.name)) for step in steps}
    shared = [_shared_router(group, made, router) for group in groups]
    routers = {name: layer.router for name, layer in made.items() if layer.router is not None}
    routers.update({name: one for group, one in zip(groups, shared, strict=True) for name in group.layers})
    _share_watch(list(routers.values()))
    for step in steps:
        _initialise(made[step.name], step, routers[step.name], init)
    for step in steps:
        for parent, child in places[id(step.static)]:
            setattr(parent, child, made[step.name])
        if step.static is model:
            model = made[step.name]
    for group, one in zip(groups, shared, strict=True):
        layers = [made[name] for name in group.layers]
        attach_scope(
            model,
            group.source,
            layers,
            one,
            rank=group.rank,
            channels_last=group.channels_last,
            spans_blocks=group.spans_blocks,
        )
    for step in steps:
        dtype = cast(Tensor, step.static.weight).dtype
        digests = tuple(_digests(made[step.name], routers[step.name], dtype))
        object.__setattr__(made[step.name], "original", Original(step.static, digests, dtype))
    return model


def original_of(layer: nn.Module) -> Original | None:
    """Return where a layer or block comes from, or None for one that was built conditional or loaded."""
    return getattr(layer, "original", None)


def forget_originals(model: nn.Module) -> nn.Module:
    """Drop the static layers that conversion keeps (memory; `revert` is then refused) and return the model."""
    for _, layer in conditional_layers(model):
        vars(layer).pop("original", None)
    return model


def revert(model: nn.Module, discard_training: bool = False) -> nn.Module:
    """Undo every conversion in a model, in place, and return it: the layers of before, as the same objects.

    They come back with their weights, hooks, `requires_grad` and ties, on the device, in the dtype and in the mode that
    the converted layers have now.

    Args:
        model: a model with converted layers.
        discard_training: revert though experts or routers have changed since the conversion; what they learned is lost,
            what the rest of the network learned stays.

    Raises:
        ConversionError: there is nothing to revert, a layer has no original, or experts or routers have changed.
    """
    a_module("revert", "model", model)
    boolean("revert", "discard_training", discard_training)
    refuse_inference_form(model, "revert")
    layers, blocks = list(conditional_layers(model)), list(conditional_blocks(model))
    if not layers and not blocks:
        raise ConversionError("revert: the model has no conditional layer, so there is nothing to revert")
    missing = [name for name, made in [*layers, *blocks] if original_of(made) is None]
    if missing:
        raise ConversionError(
            f"revert: no original is known of {_some(missing)}: built conditional or loaded from disk, where only the "
            "experts are kept; condconv.collapse gives a static network"
        )
    routers = _routers(model)
    changed = [name for name, layer in layers if _has_changed(layer, routers)]
    changed += [name for name, block in blocks if _gate_has_changed(block)]
    if changed and not discard_training:
        raise ConversionError(
            f"revert: {_some(changed)} changed since the conversion, and would go back to the weights of before while "
            "the rest of the network keeps what it learned; use condconv.collapse(model, loader) for a static network "
            "that keeps the training, or pass discard_training=True"
        )
    detach_scopes(model)
    for _, layer in layers:
        static = _restored(layer)
        for parent, child in list(_places(model, layer)):
            setattr(parent, child, static)
        if layer is model:
            model = static
    for _, block in blocks:
        replace_layer(model, block, block.block)
    return model


def refuse_inference_form(model: nn.Module, verb: str) -> None:
    """Raise `ConversionError` if anything in `model` is an inference form, or is routed by tile."""
    refuse_tiles(model, verb)
    if any(isinstance(module, PackedBank) or hasattr(module, "inference_form") for module in model.modules()):
        raise ConversionError(
            f"{verb}: the model is an inference form (condconv.optimize_for_inference): batch norm is folded and "
            "experts are packed, which cannot be undone, and quantising twice would round twice; use the network that "
            "it was made from"
        )


def refuse_tiles(model: nn.Module, verb: str) -> None:
    """Raise `ConversionError` if anything in `model` was made by `condconv.layers.route_by_tile`."""
    if any(isinstance(module, TiledConv2d) for module in model.modules()):
        raise ConversionError(
            f"{verb}: the model routes by tile (condconv.layers.route_by_tile), which only training, evaluation and "
            "counting know; use the network that it was made from"
        )


def conditional_layers(model: nn.Module) -> Iterator[tuple[str, ConditionalLayer]]:
    """Yield the names and conditional layers of a model."""
    for name, module in model.named_modules():
        if isinstance(module, ConditionalLayer):
            yield name, module


def conditional_blocks(model: nn.Module) -> Iterator[tuple[str, ConditionalBlock]]:
    """Yield the names and conditional blocks of a model."""
    for name, module in model.named_modules():
        if isinstance(module, ConditionalBlock):
            yield name, module


def replace_layer(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` wherever `old` is in `model`, and return the model."""
    for parent, child in list(_places(model, old)):
        setattr(parent, child, new)
    return new if old is model else model


def _places(model: nn.Module, wanted: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in model.modules():
        for child, module in parent._modules.items():
            if module is wanted:
                yield parent, child


def _in_common(steps: Sequence[Step], together: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """What each layer's bank shares with those of others, by the layer's name."""
    by_name = {step.name: step for step in steps}
    common: dict[str, Any] = {}
    for names in together:
        members = [by_name[name] for name in names]
        design, like = members[0].conditional.design, cast(Tensor, members[0].static.weight)
        sites = [site_of(step.static, step.name) for step in members]
        common.update(zip(names, design.make_common(sites, members[0].arguments, like.device, like.dtype), strict=True))
    return common


def _build(step: Step, router: RouterFactory | None, common: Any) -> ConditionalLayer:
    kind = same_padded(step.conditional) if pads_same(step.static) else step.conditional
    shared = {} if common is None else {"common": common}
    layer = kind.from_static(step.static, router=router if step.own_router else False, **step.arguments, **shared)
    layer.path = step.name
    # The same dictionaries, not copies: handles that were given out keep working, before and after a revert.
    for hooks in _HOOKS:
        layer.__dict__[hooks] = step.static.__dict__[hooks]
    layer._is_full_backward_hook = step.static._is_full_backward_hook
    static = cast(Any, step.static)
    layer.bank.require_gradients(static.weight.requires_grad, static.bias is not None and static.bias.requires_grad)
    return layer


def _shared_router(group: Group, made: dict[str, ConditionalLayer], router: RouterFactory | None) -> Router:
    like = made[group.layers[0]]
    site = replace(like.site, in_channels=group.in_channels, name=group.source)
    one = made_router(group.source or "the network", router or like.default_router, site, like.slices)
    return one.to(like.bank.like).train(like.training)


def _share_watch(routers: Sequence[nn.Module]) -> None:
    """One watch for all annealed gates, so that a forgotten schedule is reported once."""
    watch = StepWatch()
    for router in routers:
        for gate in annealed_gates(router):
            gate.watch = watch


def _initialise(layer: ConditionalLayer, step: Step, router: Router, init: str) -> None:
    if init == "upcycle":
        static = cast(Any, step.static)
        upcycle_bank(layer.bank, router, static.weight, static.bias, step.name)


def _routers(model: nn.Module) -> dict[RoutingScope, Router]:
    found: dict[RoutingScope, Router] = {}
    for module in model.modules():
        scope = getattr(module, "routed_scope", None)
        if isinstance(scope, RoutingScope):
            found[scope] = cast(Router, module.router)
    return found


def _has_changed(layer: ConditionalLayer, routers: dict[RoutingScope, Router]) -> bool:
    original = cast(Original, original_of(layer))
    router = layer.router if layer.scope is None else routers.get(layer.scope)
    return tuple(_digests(layer, router, original.dtype)) != original.digests


def _gate_has_changed(block: ConditionalBlock) -> bool:
    original = cast(Original, original_of(block))
    return tuple(fingerprints(block.router.parameters(), original.dtype)) != original.digests


def _digests(layer: ConditionalLayer, router: nn.Module | None, dtype: torch.dtype) -> Iterator[str]:
    parameters = itertools.chain(layer.bank.learned(), () if router is None else router.parameters())
    return fingerprints(parameters, dtype)


def fingerprints(parameters: Iterable[Tensor], dtype: torch.dtype) -> Iterator[str]:
    """A fingerprint of each parameter, in the conversion's dtype so that a detour through a wider one is no change."""
    for parameter in parameters:
        if parameter.is_meta:
            yield "meta"
            continue
        values = parameter.detach().to("cpu", dtype).contiguous()
        # Straight from memory: torch has no buffer protocol of its own, and numpy is no dependency.
        content = (ctypes.c_char * (values.numel() * values.element_size())).from_address(values.data_ptr())
        yield hashlib.blake2b(content, digest_size=16).hexdigest()


def _restored(layer: ConditionalLayer) -> nn.Module:
    """Return the original, moved to where the converted layer has been moved since."""
    original = cast(Original, original_of(layer))
    static = original.static
    now = layer.bank.like
    before = cast(Tensor, static.weight)
    if (now.device, now.dtype) != (before.device, before.dtype):
        static.to(device=now.device, dtype=now.dtype)
    if static.training != layer.training:
        static.train(layer.training)
    return static


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(name or "the model" for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )
