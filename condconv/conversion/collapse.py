"""From a conditional network to a static one: every layer keeps the kernel that its mean coefficients mix."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from condconv.conversion.apply import conditional_blocks, conditional_layers, original_of, replace_layer
from condconv.conversion.observing import observe
from condconv.counting.trace import evaluating
from condconv.layers import ConditionalLayer
from condconv.routers import RoutingScope, detach_scopes

_log = logging.getLogger("condconv")


@dataclass(frozen=True)
class Deviation:
    """How far a collapsed network's outputs are from the conditional one's."""

    relative: float
    """max|Δ| / max|y| over the first batch; NaN where the outputs differ in shape."""
    examples: int
    """Over how many examples the coefficients were averaged (the most that a layer saw)."""
    batch: int
    """In how many examples outputs were compared."""

    def __str__(self) -> str:
        return (
            f"collapsed to the mean coefficients of {self.examples} examples: outputs differ by at most "
            f"{self.relative:.3g} of the largest output, over {self.batch} examples"
        )


def collapse(model: nn.Module, loader: Iterable[Any]) -> nn.Module:
    """Return a static copy of a conditional network, with the mean coefficients over `loader`.

    A block with a gate stays where it runs for more than half of the examples, and else goes.

    How far its outputs are from the conditional network's is in the copy's attribute `deviation` (a `Deviation`), and
    is logged.

    Args:
        model: a network with conditional layers; unchanged.
        loader: batches: a tensor, or a tuple or list that begins with the network's input.

    Raises:
        ConversionError: no conditional layer, no batch, or a layer that never ran.
    """
    seen = observe("collapse", model, loader)
    means = {name: seen.routing[name].double().mean(dim=0) for name in seen.routing}
    gates = {name: float(means.pop(name)) for name, _ in conditional_blocks(model)}
    static = make_static(copy.deepcopy(model), means)
    for name, block in list(conditional_blocks(static)):
        replace_layer(static, block, block.block if gates[name] > 0.5 else nn.Identity())
    with evaluating(static), torch.no_grad():
        relative = _relative(static(seen.input), seen.output)
    examples = max(len(seen.routing[name]) for name in seen.routing)
    deviation = Deviation(relative, examples, len(seen.input))
    object.__setattr__(static, "deviation", deviation)
    _log.info("%s", deviation)
    return static


def make_static(model: nn.Module, means: Mapping[str, Tensor]) -> nn.Module:
    """Make some conditional layers static, in place, and return the model; routers that route no layer then are gone.

    Args:
        model: a network with conditional layers.
        means: the coefficients (D,) of each of those layers, by its name.
    """
    layers = dict(conditional_layers(model))
    scopes: set[RoutingScope] = set()
    for name, layer in layers.items():
        scope = None if name in means else layer.scope
        while scope is not None and scope not in scopes:
            scopes.add(scope)
            scope = scope.previous
    detach_scopes(model, keep=scopes)
    for name, mean in means.items():
        model = replace_layer(model, layers[name], _static_layer(layers[name], mean.to(layers[name].bank.like)))
    return model


def _static_layer(layer: ConditionalLayer, mean: Tensor) -> nn.Module:
    """The layer's original with new weights where there is one (right class, hooks and padding), else a new layer."""
    mixed = cast(Any, layer.to_static(mean))
    original = original_of(layer)
    if original is None:
        return mixed
    static = cast(Any, copy.deepcopy(original.static)).to(layer.bank.like)
    with torch.no_grad():
        static.weight.copy_(mixed.weight)
        if static.bias is not None:
            static.bias.copy_(mixed.bias)
    return static.train(layer.training)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _relative(got: Any, expected: Any) -> float:
    pairs = list(zip(_tensors(got), _tensors(expected), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("nan")
    difference = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    largest = max((float(b.abs().max()) for _, b in pairs if b.numel()), default=0.0)
    return difference / largest if largest else difference
