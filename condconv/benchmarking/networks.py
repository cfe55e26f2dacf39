"""The networks that are compared with a conditional one, and what they have to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers import CondConv2d as TimmCondConv2d
from torch import Tensor, nn

from condconv.conversion.apply import conditional_layers, replace_layer
from condconv.errors import ArgumentError
from condconv.execution import watch_execution
from condconv.layers import ConditionalConv2d, ConditionalLayer
from condconv.models import static_twin
from condconv.models.build import origin_of
from condconv.models.specs import SPECS
from condconv.variants import variants

CONDITIONAL, TUNED, STATIC, TIMM, TIMM_LAYERS = "conditional", "conditional, tuned", "static", "timm", "timm's layers"
_SAME_IN_TIMM = {"num_classes", "in_chans"}


def rivals(model: nn.Module) -> dict[str, nn.Module]:
    """The static twin of a conditional network and timm's implementation of it, by name; with fresh weights.

    Where timm has not the network but its layer can take the place of all conditional convolutions, the rival is the
    network with timm's layers: "timm's layers". Where it cannot, there is none.

    Raises:
        ArgumentError: the model has no conditional layer, or was not made by `create_model`.
    """
    if not any(True for _ in conditional_layers(model)):
        raise ArgumentError(
            f"benchmark: {type(model).__name__} has no conditional layer, so there is nothing to compare with a static "
            "twin; pass a conditional network, or convert it first: condconv convert … --out FOLDER"
        )
    origin = origin_of(model)
    if origin is None or origin.name is None:
        raise ArgumentError(
            f"benchmark: {type(model).__name__} was not made by create_model, so its static twin is not known; make "
            "the static network with create_model and convert it"
        )
    found = {STATIC: static_twin(origin.name, **origin.arguments)}
    timm_name = SPECS[origin.name].timm_name if origin.name in SPECS else None
    if timm_name is not None and set(origin.arguments) <= _SAME_IN_TIMM:
        return {**found, TIMM: timm.create_model(timm_name, **origin.arguments)}
    swapped = with_timm_layers(model)
    return found if swapped is None else {**found, TIMM_LAYERS: swapped}


class TimmLayer(nn.Module):
    """timm's conditional convolution in the place of one of ours, routed as that one is."""

    def __init__(self, layer: ConditionalConv2d) -> None:
        super().__init__()
        self.scope, self.router, self.path = layer.scope, layer.router, layer.path
        same = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "num_experts")
        arguments: dict[str, Any] = {name: getattr(layer, name) for name in same}
        arguments |= {"padding": layer.geometry.padding, "bias": layer.site.bias}
        self.convolution = TimmCondConv2d(**arguments)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, I, H, W) → (B, O, H', W')."""
        if self.scope is not None:
            return self.convolution(x, self.scope.borrow(self.path))
        assert self.router is not None
        return self.convolution(x, self.router(x))


def with_timm_layers(model: nn.Module) -> nn.Module | None:
    """A copy with timm's layer in place of every conditional convolution, or None where one cannot be replaced."""
    made = copy.deepcopy(model)
    convolutions = [layer for _, layer in conditional_layers(made) if layer.geometry.rank > 1]
    if not convolutions or not all(map(_timm_has, convolutions)):
        return None
    for layer in convolutions:
        assert isinstance(layer, ConditionalConv2d)
        made = replace_layer(made, layer, TimmLayer(layer))
    return made


def _timm_has(layer: ConditionalLayer) -> bool:
    known = {kind for name in variants for kind in variants[name].layers}  # Not those that pad for "SAME".
    padded = isinstance(layer, ConditionalConv2d) and not layer._prepad
    return padded and type(layer) in known and (layer.scope or layer.router) is not None


class TrainingStep:
    """A step of training: forward, loss, backward, and SGD with momentum; channels_last, all of the first class."""

    def __init__(self, network: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> None:
        self.network = network.train().to(memory_format=torch.channels_last)
        self.run = network if run is None else run  # What is compiled may have no length, and no truth.
        """What computes the logits, where it is not the network itself: its compiled form."""
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        self.x, self.labels = x, torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)

    def __call__(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.run(self.x), self.labels).backward()
        self.optimizer.step()


def strategies_of(call: Callable[[], object]) -> str:
    """The strategies that run in a call, most frequent first, separated by spaces."""
    ran: list[str] = []
    with watch_execution(lambda strategy, *_: ran.append(strategy)):
        call()
    return " ".join(sorted(set(ran), key=lambda name: -ran.count(name)))
