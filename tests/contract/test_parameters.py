"""Pruning, weight normalisation, quantisation: of a bank by the names of its parameters, refused on its layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import condconv
from condconv.variants import variants

LAYERS = [variants[name].layers[0] for name in variants]
APPLY: dict[str, Callable[[nn.Module, str], Any]] = {
    "prune": lambda module, name: prune.l1_unstructured(module, name, 0.5),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


def small(cls: Any) -> Any:
    parts = {"num_experts": 4} if cls is condconv.FDConv2d else {}  # It has 18 frequencies here.
    return cls(4, 6, 1, **parts).eval()


@pytest.mark.parametrize("how", APPLY)
@pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)
def test_a_bank_takes_them_by_the_names_of_its_parameters(cls: Any, how: str) -> None:
    layer = small(cls)
    x = torch.randn(2, 4, *[5] * getattr(layer, "rank", 0))
    owner, _, name = next(n for n, p in layer.bank.named_parameters() if p.dim() > 1).rpartition(".")
    before = layer(x)
    APPLY[how](layer.bank.get_submodule(owner), name)
    after = layer(x)
    assert how == "weight_norm" or not torch.equal(after, before)
    after.sum().backward()
    assert all(p.grad is not None for p in layer.bank.parameters())


def test_on_the_layer_they_say_where_to_go() -> None:
    layer = condconv.CondConv2d(4, 6, 1)
    with pytest.raises(condconv.ArgumentError, match="'weight' is a parameter of layer.bank.*apply it to layer.bank"):
        prune.l1_unstructured(layer, "weight", 0.5)
    layer(torch.randn(1, 4, 3, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_routers_are_quantised_dynamically() -> None:
    net = nn.Sequential(condconv.CondConv2d(4, 6, 3), condconv.DynamicConv2d(6, 4, 1)).eval()
    x = torch.randn(2, 4, 6, 6)
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        torch.testing.assert_close(quantised(x), net(x), atol=0.05, rtol=0.05)
