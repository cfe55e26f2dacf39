"""Watching and replacing routing without touching the model."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import condconv


def model() -> nn.Sequential:
    return nn.Sequential(condconv.CondConv2d(3, 4, 3, num_experts=3), nn.ReLU(), condconv.DynamicConv2d(4, 5, 3)).eval()


def test_recording_concatenates_batches_in_order_and_leaves_no_trace() -> None:
    net = model()
    before = dict(vars(net[0]))
    x = torch.randn(5, 3, 8, 8)
    with condconv.record_routing(net) as routing:
        net(x[:2])
        net(x[2:])
    assert set(routing) == {"0", "2"} and routing["0"].shape == (5, 3) and routing["2"].shape == (5, 4)
    assert torch.equal(routing["0"], net[0].router(x)) and routing["0"].device.type == "cpu"
    assert {k: v for k, v in vars(net[0]).items() if k != "_last_strategy"} == {
        k: v for k, v in before.items() if k != "_last_strategy"
    }
    net(x)
    assert routing["0"].shape == (5, 3)


def test_recording_sees_coefficients_from_outside_and_single_examples() -> None:
    layer = condconv.CondConv2d(3, 4, 3, num_experts=2)
    with condconv.record_routing(layer) as routing:
        layer(torch.randn(3, 8, 8), torch.tensor([0.25, 0.5]))
    assert torch.equal(routing[""], torch.tensor([[0.25, 0.5]]))


def test_recording_counts_a_recomputed_example_once() -> None:
    layer = condconv.CondConv2d(3, 4, 3, num_experts=2)
    with condconv.record_routing(layer) as routing:
        checkpoint(layer, torch.randn(2, 3, 8, 8, requires_grad=True), use_reentrant=False).sum().backward()
    assert routing[""].shape == (2, 2)


def test_contexts_are_thread_local() -> None:
    net = model()
    x = torch.randn(2, 3, 8, 8)
    net(x)
    usual = condconv.last_strategy(net[0])
    with condconv.record_routing(net) as routing, condconv.use_strategy("reference"):
        other: list[str | None] = []

        def work() -> None:
            net(x)
            other.append(condconv.last_strategy(net[0]))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert other == [usual] != ["reference"] and not routing
        net(x)
    assert routing["0"].shape == (2, 3)


def test_an_exception_closes_the_context() -> None:
    net = model()
    with pytest.raises(ZeroDivisionError), condconv.record_routing(net) as routing:
        raise ZeroDivisionError
    net(torch.randn(2, 3, 8, 8))
    assert not routing


@pytest.mark.parametrize("how", ["mean", "argmax", "shuffle", "shuffle_experts"])
def test_interventions_do_what_they_say(how: str) -> None:
    net = model()
    net[2].router.gate.anneal(0.1)
    x = torch.randn(6, 3, 8, 8)
    with condconv.record_routing(net) as plain:
        y = net(x)
    with condconv.override_routing(net, how), condconv.record_routing(net) as changed:
        z = net(x)
    assert not torch.equal(y, z)
    first, then = plain["0"], changed["0"]
    torch.testing.assert_close(then.sum(1).sort().values, first.sum(1).sort().values)
    if how == "mean":
        assert torch.equal(then, first.mean(1, keepdim=True).expand_as(first))
        torch.testing.assert_close(changed["2"], torch.full((6, 4), 0.25))
    elif how == "argmax":
        assert ((then > 0).sum(1) == 1).all() and torch.equal(then.argmax(1), first.argmax(1))
        torch.testing.assert_close(changed["2"].max(1).values, torch.ones(6))
    elif how == "shuffle":
        order = [int((first == row).all(1).nonzero()) for row in then]
        assert sorted(order) == list(range(6)) and order != list(range(6))
    else:
        assert not torch.equal(then, first) and torch.equal(then.sort(1).values, first.sort(1).values)


def test_shuffling_moves_the_same_examples_in_every_layer() -> None:
    net = nn.Sequential(*(condconv.CondConv2d(3, 3, 1, num_experts=2, router=False) for _ in range(2)))
    alpha = torch.rand(5, 2)
    with condconv.override_routing(net, "shuffle"), condconv.record_routing(net) as routing:
        for layer in net:
            layer(torch.randn(5, 3, 4, 4), alpha)
    assert torch.equal(routing["0"], routing["1"]) and not torch.equal(routing["0"], alpha)


def test_a_callable_decides_layer_by_layer() -> None:
    net = model()
    x = torch.randn(2, 3, 8, 8)

    def first_only(name: str, coefficients: Tensor) -> Tensor:
        return torch.ones_like(coefficients) if name == "0" else coefficients

    with condconv.override_routing(net, first_only), condconv.record_routing(net) as routing:
        net(x)
    assert torch.equal(routing["0"], torch.ones(2, 3)) and not torch.equal(routing["2"], torch.ones(2, 4))
    with (
        pytest.raises(condconv.ShapeError, match=r"0: override_routing's callable returned shape \(2, 1\)"),
        condconv.override_routing(net, lambda name, c: c[:, :1]),
    ):
        net(x)


def test_nonfinite_coefficients_are_traced_to_layer_and_router() -> None:
    net = model()
    x = torch.randn(3, 3, 8, 8)
    x[1, 0, 0, 0] = math.inf
    assert not torch.isfinite(net(x)[1]).all() and torch.isfinite(net(x)[0]).all()
    with torch.no_grad():
        net[0].router.body[0].weight.fill_(math.nan)
    with (
        pytest.raises(condconv.NonFiniteError, match=r"^0: 9 of 9 coefficients from its own router are not finite"),
        condconv.detect_nonfinite(net),
    ):
        net(torch.randn(3, 3, 8, 8))


def test_what_cannot_be_observed_is_refused() -> None:
    with pytest.raises(condconv.ArgumentError, match="has no conditional layer"), condconv.record_routing(nn.ReLU()):
        pass
    compiled = torch.compile(model(), backend="eager")
    with pytest.raises(condconv.ArgumentError, match="is compiled"), condconv.record_routing(compiled):
        pass
    with (
        pytest.raises(condconv.UnknownNameError, match="unknown intervention 'shufle'; did you mean 'shuffle'"),
        condconv.override_routing(model(), "shufle"),
    ):
        pass


def test_a_compiled_submodule_is_named() -> None:
    net = model()
    net[2].compile(backend="eager")
    with pytest.raises(condconv.ArgumentError, match=r"2 \(DynamicConv2d\) is compiled"), condconv.record_routing(net):
        pass
