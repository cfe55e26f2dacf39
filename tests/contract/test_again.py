"""A layer in inference asks less of a kind of input that it has seen: with the same outcome, whatever has changed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.layers import ConditionalLayer, last_strategy
from tests.contract.cases import LAYERS, OTHERS, example_input, example_layer, name_of

EVERY = pytest.mark.parametrize("cls", [*LAYERS, *OTHERS], ids=name_of)
ONE = condconv.CondConv2d


def called(cls: Any, **arguments: Any) -> tuple[Any, Tensor, Tensor]:
    """A layer that has been called in inference, with what and what came of it."""
    layer, x = (example_layer(cls) if not arguments else cls(8, 12, 3, **arguments)).eval(), example_input(cls, 2)
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(layer(x), y)
    return layer, x, y


@EVERY
def test_what_it_knows_changes_nothing(cls: Any) -> None:
    layer, x, _ = called(cls)
    other, single = example_input(cls, 2), example_input(cls, 3)
    with torch.no_grad():
        for given in (other, single, x):
            with torch.enable_grad():
                asked = layer(given)
            assert asked.requires_grad
            torch.testing.assert_close(layer(given), asked)


def test_experts_that_have_changed() -> None:
    layer, x, y = called(ONE)
    with torch.no_grad():
        layer.bank.weight.mul_(2)
        layer.bank.bias.mul_(2)
        torch.testing.assert_close(layer(x), 2 * y)
    layer.double()
    with torch.no_grad():
        torch.testing.assert_close(layer(x.double()), 2 * y.double(), atol=1e-5, rtol=1e-5)
        with pytest.raises(condconv.ArgumentError, match="is of another type than the experts"):
            layer(x)


def test_experts_of_another_type() -> None:
    layer, x, _ = called(ONE, bias=False)
    layer.bank.weight.data = layer.bank.weight.data.double()
    with torch.no_grad(), pytest.raises(condconv.ArgumentError, match="is of another type than the experts"):
        layer(x)


@pytest.mark.parametrize("experts", ["learned", "int8"])
def test_a_bank_that_is_another_one(experts: str) -> None:
    layer, x, y = called(ONE, bias=False)
    if experts != "learned":
        layer = condconv.optimize_for_inference(nn.Sequential(layer), experts=experts)[0]
    seen: list[Tensor] = []
    with torch.no_grad():
        torch.testing.assert_close(layer(x), y, atol=0.02, rtol=0.02)
        handle = layer.bank.register_forward_hook(lambda bank, inputs, lowered: seen.append(lowered.coefficients))
        layer(x)
        handle.remove()
        assert len(seen) == 1
        name, held = next(iter(layer.bank.state_dict(keep_vars=True).items()))
        zeros = torch.zeros_like(held)
        assert not torch.func.functional_call(layer, {f"bank.{name}": zeros}, (x,)).any()
        assert layer(x).any()
        setattr(layer.bank, name, nn.Parameter(zeros) if isinstance(held, nn.Parameter) else zeros)
        assert not layer(x).any()


def test_what_watches_and_replaces_still_does() -> None:
    layer, x, y = called(ONE)
    with torch.no_grad():
        with condconv.record_routing(layer) as routing:
            layer(x)
        assert routing[""].shape == (2, layer.num_experts)
        with condconv.override_routing(layer, "mean"):
            assert not torch.equal(layer(x), y)
        with condconv.use_strategy("grouped"):
            torch.testing.assert_close(layer(x), y)
            assert last_strategy(layer) == "grouped"
        layer.strategy = "batched_gemm"
        torch.testing.assert_close(layer(x), y)
        assert last_strategy(layer) == "batched_gemm"


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(8), "has 1 dimensions"),
        (torch.zeros(2, 7, 6, 6), "has 7 channels"),
        (torch.zeros(2, 8, 6, 6).int(), "is no dense tensor of real floating-point numbers"),
        (torch.zeros(2, 8, 6, 6).to_sparse(), "is no dense tensor of real floating-point numbers"),
        ("x", "is not a tensor"),
    ],
)
def test_what_was_refused_is_refused(x: Any, message: str) -> None:
    layer, _, _ = called(ONE)
    with torch.no_grad(), pytest.raises(condconv.CondConvError, match=message):
        layer(x)


def test_wrong_coefficients_are_refused() -> None:
    layer, x, _ = called(ONE)
    for wrong in (torch.ones(2, 3), torch.ones(3, layer.num_experts), 1):
        with torch.no_grad(), pytest.raises(condconv.CondConvError, match="coefficients"):
            layer(x, wrong)


def test_it_pads_what_it_pads_itself() -> None:
    # The padded input has the shape of an input that would have to be padded too.
    layer, x, _ = called(ONE, padding=1, padding_mode="circular")
    with torch.no_grad():
        assert layer(torch.randn(2, 8, 8, 8)).shape[2:] == (8, 8)
        assert layer(x).shape[2:] == (6, 6)


def test_it_is_copied_pickled_and_compiled() -> None:
    layer, x, y = called(ONE)
    with torch.no_grad():
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert isinstance(other, ConditionalLayer)
            torch.testing.assert_close(other(x), y)
        torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), y)
        torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(x), y)
    torch.testing.assert_close(torch.func.vmap(lambda one: layer(one, torch.full((8,), 0.5)))(x).shape, y.shape)
