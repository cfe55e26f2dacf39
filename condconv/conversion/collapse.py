"""From a conditional network to a static one: every layer keeps the kernel that its mean coefficients mix."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from condconv.arguments import a_module
from condconv.conversion.apply import conditional_layers, original_of, refuse_forms, replace_layer
from condconv.counting.trace import evaluating
from condconv.errors import ConversionError, argument_error
from condconv.layers import ConditionalLayer
from condconv.routers import detach_scopes
from condconv.routing_hooks import record_routing

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

    How far its outputs are from the conditional network's is in the copy's attribute `deviation` (a `Deviation`), and
    is logged.

    Args:
        model: a network with conditional layers; unchanged.
        loader: batches: a tensor, or a tuple or list that begins with the network's input.

    Raises:
        ConversionError: no conditional layer, no batch, or a layer that never ran.
    """
    a_module("collapse", "model", model)
    if not isinstance(loader, Iterable) or isinstance(loader, str | bytes | type | Tensor):
        rule = "gives no batches"
        raise argument_error("collapse", "loader", loader, rule, "pass a loader or a list of inputs of the network")
    refuse_forms(model, "collapse")
    if not any(True for _ in conditional_layers(model)):
        raise ConversionError("collapse: the model has no conditional layer, so it is static already")
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise ConversionError("collapse: the loader gives no batch; mean coefficients need data")
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), record_routing(model) as routing:
        expected = None
        for batch in itertools.chain([first], batches):
            output = model(_input(batch, device))
            expected = output if expected is None else expected
    unseen = [name for name, _ in conditional_layers(model) if name not in routing]
    if unseen:
        raise ConversionError(f"collapse: {unseen[0] or 'the model'} did not run on the loader; give data that runs it")
    means = {name: routing[name].double().mean(dim=0) for name in routing}
    static = _static_copy(model, means)
    with evaluating(static), torch.no_grad():
        relative = _relative(static(_input(first, device)), expected)
    examples = max(len(routing[name]) for name in routing)
    deviation = Deviation(relative, examples, _batch_size(_input(first, device)))
    object.__setattr__(static, "deviation", deviation)
    _log.info("%s", deviation)
    return static


def _static_copy(model: nn.Module, means: dict[str, Tensor]) -> nn.Module:
    static = copy.deepcopy(model)
    layers = list(conditional_layers(static))
    detach_scopes(static)
    for name, layer in layers:
        static = replace_layer(static, layer, _static_layer(layer, means[name].to(layer.bank.like)))
    return static


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


def _input(batch: Any, device: torch.device) -> Any:
    if not isinstance(batch, Tensor | tuple | list) or len(batch) == 0:
        rule = f"gives a batch of type {type(batch).__name__}"
        raise argument_error("collapse", "loader", batch, rule, "each is a tensor, or a tuple that begins with one")
    x = batch if isinstance(batch, Tensor) else batch[0]
    return x.to(device) if isinstance(x, Tensor) else [item.to(device) for item in x]


def _batch_size(x: Any) -> int:
    return len(x)


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
