"""Layers that cannot be converted right are skipped, each with its reason; the network goes on working."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import condconv
from condconv.layers import ConditionalLayer


class Reads(nn.Module):
    """Computes with a layer's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.layer.weight) + self.layer(x)


class AsksForSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(3, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, output_size=(16, 16))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.training else x


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Standardised(nn.Conv2d):
    """Its weight is standardised in each call, and scaled by a parameter of its own."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gain * (self.weight - self.weight.mean()), self.bias)


class Labelled(nn.Conv2d):
    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.label = nn.Parameter(torch.ones(1))


def patched() -> nn.Module:
    layer = nn.Conv2d(3, 3, 1)
    layer.forward = lambda x: x
    return layer


def tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    net[1].weight = net[0].weight
    return net


def weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch, and still in use
        return nn.utils.weight_norm(nn.Conv2d(3, 3, 1))


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        return torch.ao.nn.quantized.Conv2d(3, 3, 1)


SKIPPED: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    "read by its parent": (Reads, "its weights are read by 0, outside of its forward", True),
    "output_size": (AsksForSize, "called with more than its input", True),
    "not called": (Unused, "not called in a forward pass in eval mode", True),
    "tied": (tied, "shares its parameters with 0.", False),
    "own forward": (lambda: OwnForward(3, 3, 1), "OwnForward computes something else", False),
    "own _conv_forward": (lambda: OwnConvolution(3, 3, 1), "OwnConvolution computes something else", False),
    "standardised": (lambda: Standardised(3, 3, 1), "Standardised computes something else.*own forward", False),
    "own parameter": (lambda: Labelled(3, 3, 1), "Labelled holds modules, parameters or buffers", False),
    "patched forward": (patched, "computes something else", False),
    "weight norm": (weight_norm, "its weight or bias is computed by a hook", False),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), "parametrised: .*remove_param", False),
    "pruned": (lambda: prune.l1_unstructured(nn.Conv2d(3, 3, 1), "weight", 1), "computed by a hook", False),
    "lazy": (lambda: nn.LazyConv2d(3, 1), "lazy: run the network once", False),
    "no conditional form": (lambda: nn.ConvTranspose1d(3, 3, 1), "no conditional form of ConvTranspose1d", False),
    "quantised": (quantised, "quantised", False),
    "scripted": (lambda: torch.jit.script(nn.Conv2d(3, 3, 1)), "TorchScript", False),
    "complex": (lambda: nn.Conv2d(3, 3, 1, dtype=torch.complex64), "dtype torch.complex64", False),
    "conditional": (lambda: condconv.CondConv2d(3, 3, 1), "already conditional", False),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_with_the_reason(name: str) -> None:
    make, reason, traced = SKIPPED[name]
    net = nn.Sequential(make(), nn.Conv2d(3, 4, 1))
    untouched = dict(net[0].named_modules())
    plan = condconv.plan(net, targets=".", input_size=(3, 8, 8) if traced else None)
    rows = [layer for layer in plan.layers if layer.name.split(".")[0] == "0"]
    assert rows and not any(layer.converted for layer in rows)
    assert any(re.search(reason, layer.why) for layer in rows)
    plan.apply()
    assert plan.converted == ("1",) and isinstance(net[1], condconv.CondConv2d)
    assert dict(net[0].named_modules()) == untouched


@pytest.mark.parametrize("traced", [True, False])
def test_attention_reads_its_output_projection(traced: bool) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.attention(x, x, x)[0])

    net, x = Attend().eval(), torch.randn(2, 5, 8)
    expected = net(x)
    plan = condconv.plan(net, targets="linear", input_size=(5, 8) if traced else None)
    plan.apply()
    assert plan.converted == ("linear",)
    assert torch.allclose(net(x), expected, atol=1e-5)
    assert "read by" in next(layer.why for layer in plan.layers if layer.name == "attention.out_proj")


def test_subclasses_that_add_nothing_are_converted() -> None:
    class Renamed(nn.Conv2d):
        pass

    made = condconv.convert(nn.Sequential(Renamed(3, 4, 1)), targets=".")
    assert isinstance(made[0], condconv.CondConv2d)
    assert type(condconv.revert(made)[0]) is Renamed


def test_layers_used_twice_route_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.conv(x)))

    net, x = Twice(), torch.randn(2, 3, 5, 5)
    expected = net(x)
    condconv.convert(net, targets="conv", input_size=(3, 5, 5))
    assert torch.allclose(net(x), expected, atol=1e-6)
    with condconv.record_routing(net) as routing:
        net(x)
    assert routing["conv"].shape == (4, 8)


def test_every_layer_keeps_its_dtype_and_mixed_blocks_do_not_share() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).double()).float()

    net, x = nn.Sequential(Mixed(), Mixed()), torch.randn(2, 3, 5, 5)
    expected = net(x)
    plan = condconv.plan(net, targets=".", share="block", input_size=(3, 5, 5))
    plan.apply()
    assert net[0].a.weight.dtype == torch.float32 and net[0].b.weight.dtype == torch.float64
    assert net[0].a.scope is not None and net[0].b.scope is None
    assert "torch.float64" in next(layer.why for layer in plan.layers if layer.name == "0.b")
    assert torch.allclose(net(x), expected, atol=1e-6)


def test_frozen_layers_stay_frozen_and_their_routers_train() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1)).requires_grad_(False)
    condconv.convert(net, targets=".")
    layer = net[0]
    assert isinstance(layer, ConditionalLayer)
    assert not layer.bank.weight.requires_grad and not layer.bank.bias.requires_grad
    assert all(p.requires_grad for p in layer.router.parameters())
    assert not any(p.requires_grad for p in condconv.revert(net).parameters())
