"""What the routers of a network say of data, and what the network makes of its first batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condconv.arguments import a_module
from condconv.conversion.apply import conditional_blocks, conditional_layers, refuse_inference_form
from condconv.counting.trace import evaluating
from condconv.errors import ConversionError, argument_error
from condconv.routing_hooks import Routing, record_routing


class Observed(NamedTuple):
    """Coefficients by layer, and the first batch: the network's input and its output."""

    routing: Routing
    input: Any
    output: Any


def observe(verb: str, model: nn.Module, loader: Iterable[Any], most: int | None = None) -> Observed:
    """Run a network over data, in eval mode, on the device where it is.

    Args:
        verb: whose arguments these are.
        model: a network with conditional layers.
        loader: batches: a tensor, or a tuple or list that begins with the network's input.
        most: stop after the batch with which this many examples are seen.

    Raises:
        ArgumentError: the loader gives no batches.
        ConversionError: an inference form, no conditional layer, no batch, or a layer that never ran.
    """
    a_module(verb, "model", model)
    if not isinstance(loader, Iterable) or isinstance(loader, str | bytes | type | Tensor):
        rule = "gives no batches"
        raise argument_error(verb, "loader", loader, rule, "pass a loader or a list of inputs of the network")
    refuse_inference_form(model, verb)
    if not any(True for _ in itertools.chain(conditional_layers(model), conditional_blocks(model))):
        raise ConversionError(f"{verb}: the model has no conditional layer, so it is static already")
    device, done = next(model.parameters()).device, 0
    first: Any = None
    with evaluating(model), torch.no_grad(), record_routing(model) as routing:
        for batch in loader:
            x = input_of(verb, batch, device)
            output = model(x)
            first = (x, output) if first is None else first
            done += len(x)
            if most is not None and done >= most:
                break
    if first is None:
        raise ConversionError(f"{verb}: the loader gives no batch; mean coefficients need data")
    left_out = tuple(f"{name}." for name, _ in conditional_blocks(model) if name in routing and not routing[name].any())
    layers = [name for name, _ in conditional_layers(model) if not name.startswith(left_out)]
    unseen = [name for name in layers if name not in routing]
    if unseen:
        raise ConversionError(f"{verb}: {unseen[0] or 'the model'} did not run on the loader; give data that runs it")
    return Observed(routing, *first)


def input_of(verb: str, batch: Any, device: torch.device) -> Any:
    """The network's input, a tensor or a list of them, in a batch of a loader."""
    if not isinstance(batch, Tensor | tuple | list) or len(batch) == 0:
        rule = f"gives a batch of type {type(batch).__name__}"
        raise argument_error(verb, "loader", batch, rule, "each is a tensor, or a tuple that begins with one")
    x = batch if isinstance(batch, Tensor) else batch[0]
    return x.to(device) if isinstance(x, Tensor) else [item.to(device) for item in x]
