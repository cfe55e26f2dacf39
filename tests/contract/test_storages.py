"""The contract of a layer, for every way in which an inference form stores its experts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import condconv
from condconv.banks import PackedBank
from condconv.packing import STORAGES
from tests.contract import cases
from tests.contract.cases import CONVOLUTIONS, LAYERS, example_input, example_layer, name_of
from tests.contract.test_execution import UNHURRIED

STORAGE = pytest.mark.parametrize("storage", STORAGES)
EVERY = pytest.mark.parametrize("cls", LAYERS, ids=name_of)


def packed_copy(layer: Any, storage: str) -> Any:
    """The layer with packed experts, for inference."""
    made = copy.deepcopy(layer).eval().requires_grad_(False)
    made.bank = PackedBank(layer.weight, layer.bias, None, layer.geometry.groups, storage)
    return made


def dense_copy(layer: Any, packed: Any) -> Any:
    """The layer in f64 with dense experts that have the values of the packed ones."""
    made = copy.deepcopy(layer).double().requires_grad_(False)
    made.weight.copy_(packed.weight)
    return made


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("cls", CONVOLUTIONS, ids=name_of)
def test_strategies_equal_the_definition(cls: Any) -> None:
    @settings(UNHURRIED, max_examples=12)
    @given(geometry=cases.geometries(cls), batch=st.sampled_from([1, 2, 7]), storage=st.sampled_from(sorted(STORAGES)))
    def check(geometry: tuple[dict[str, Any], tuple[int, ...]], batch: int, storage: str) -> None:
        arguments, size = geometry
        layer = cls(**arguments)
        packed = packed_copy(layer, storage)
        x, coefficients = torch.randn(batch, layer.in_channels, *size), torch.rand(batch, layer.num_experts)
        expected = cases.static_output(dense_copy(layer, packed), x.double(), coefficients.double()).float()
        for strategy in (*cases.serving(packed, x), "auto"):
            with condconv.use_strategy(strategy):
                torch.testing.assert_close(packed(x, coefficients), expected, atol=1e-5, rtol=1e-5)

    check()


@STORAGE
@EVERY
def test_examples_stay_apart(cls: Any, storage: str) -> None:
    packed = packed_copy(example_layer(cls, num_experts=3), storage)
    x, order = example_input(cls, 7), torch.randperm(7)
    y = packed(x)
    torch.testing.assert_close(packed(x[order]), y[order], atol=1e-6, rtol=1e-5)
    x[1] = math.nan
    spoiled = packed(x)
    assert torch.isnan(spoiled[1]).any()
    assert torch.equal(spoiled[2:], y[2:]) and torch.equal(spoiled[0], y[0])
    one = x[2, 0] if cls.static_type is nn.Linear else x[2]
    many = x[:, 0] if cls.static_type is nn.Linear else x
    torch.testing.assert_close(packed(one), packed(many)[2], atol=1e-6, rtol=1e-5)


@STORAGE
@EVERY
def test_bf16_and_memory_formats(cls: Any, storage: str) -> None:
    layer = example_layer(cls, num_experts=3)
    packed, x = packed_copy(layer, storage), example_input(cls, 3)
    y = packed(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = packed(x)
    halved = copy.deepcopy(packed).bfloat16()(x.bfloat16())
    for z in (mixed, halved):
        assert z.dtype == torch.bfloat16
        assert float((z.float() - y).abs().max()) < 0.05 * float(y.abs().max()) + 0.05
    if cls.static_type is nn.Conv2d:
        last = packed(x.to(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last) and y.is_contiguous()
        torch.testing.assert_close(last, y)
