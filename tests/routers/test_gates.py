"""Gates, expert dropping, top-k."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import condconv
from condconv.routers import SigmoidGate, SoftmaxGate, TopKGate, drop_experts


def test_sigmoid_and_softmax_are_what_they_say() -> None:
    z = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(SigmoidGate()(z), 1 / (1 + torch.exp(-z)))
    weights = torch.exp(z / 7)
    torch.testing.assert_close(SoftmaxGate(7.0).eval()(z), weights / weights.sum(1, keepdim=True))


def test_a_high_temperature_flattens() -> None:
    z = torch.randn(5, 4)
    spread = [float(SoftmaxGate(t).eval()(z).std()) for t in (1.0, 5.0, 30.0)]
    assert spread[0] > spread[1] > spread[2] > 0


def test_top_k_keeps_the_largest_and_breaks_ties_by_index() -> None:
    z = torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0]])
    kept = TopKGate(SigmoidGate(), 2)(z)
    assert torch.equal(kept > 0, torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]]).bool())
    torch.testing.assert_close(kept[kept > 0], torch.sigmoid(z)[kept > 0])
    soft = TopKGate(SoftmaxGate(1.0), 2).eval()(z)
    torch.testing.assert_close(soft.sum(1), torch.ones(3))
    assert torch.equal(soft[1], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert torch.equal(TopKGate(SigmoidGate(), 9)(z), torch.sigmoid(z))


def test_top_k_noise_is_for_training_only() -> None:
    z = torch.randn(64, 8)
    gate = TopKGate(SigmoidGate(), 1, noise_std=2.0)
    plain = TopKGate(SigmoidGate(), 1)(z)
    assert torch.equal(gate.eval()(z), plain)
    assert not torch.equal(gate.train()(z) > 0, plain > 0)


@pytest.mark.parametrize("p", [0.3, 0.9, 0.999])
def test_dropping_keeps_one_expert_and_the_scale(p: float) -> None:
    alpha = torch.rand(4000, 4, dtype=torch.float64) + 0.5
    dropped = drop_experts(alpha, p, renormalise=False)
    kept = dropped > 0
    assert kept.any(dim=1).all()
    torch.testing.assert_close(dropped[kept], (alpha / (1 - p))[kept])
    soft = torch.softmax(alpha, dim=1)
    torch.testing.assert_close(drop_experts(soft, p, renormalise=True).sum(1), torch.ones(4000, dtype=torch.float64))
    # Independent drops: all four go with probability p⁴, and then one is kept.
    expected = (4 * (1 - p) + p**4) / 4
    assert abs(float(kept.double().mean()) - expected) < 4 * math.sqrt(0.25 / 16000)


def test_the_only_coefficient_of_top_1_learns_straight_through() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0]], requires_grad=True)
    alpha = TopKGate(SoftmaxGate(1.0), 1)(logits)
    assert torch.equal(alpha, torch.tensor([[0.0, 1.0, 0.0]]))
    alpha[0, 1].backward()
    torch.testing.assert_close(logits.grad, torch.eye(3)[1:2] - logits.detach().softmax(dim=1))
    assert torch.equal(TopKGate(SoftmaxGate(1.0), 1).eval()(logits), alpha)


def test_dropping_after_top_k_keeps_a_live_expert() -> None:
    alpha = TopKGate(SoftmaxGate(1.0), 2).eval()(torch.randn(500, 8))
    dropped = drop_experts(alpha, 0.9, renormalise=True)
    assert torch.isfinite(dropped).all() and (dropped > 0).any(dim=1).all()
    assert not (dropped[alpha == 0]).any()


def test_expert_dropping_is_off_in_eval_and_on_in_training() -> None:
    router = condconv.PooledLinear(3, 8, expert_dropout=0.5)
    x = torch.randn(16, 3, 4, 4)
    assert (router.eval()(x) > 0).all()
    assert not (router.train()(x) > 0).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TopKGate(SigmoidGate(), 0), "TopKGate: k=0 must be at least 1"),
        (lambda: TopKGate(SigmoidGate(), 1, -1.0), "noise_std=-1.0 must be a number, at least 0"),
        (lambda: SoftmaxGate(0.0), "temperature=0.0 must be a number, at least 1e-30"),
        (lambda: condconv.PooledLinear(0, 4), "in_channels=0 must be at least 1"),
        (lambda: condconv.PooledLinear(4, 0), "num_experts=0 must be at least 1"),
        (lambda: condconv.PooledLinear(4, 4, hidden_channels=0), "hidden_channels=0 must be at least 1"),
        (lambda: condconv.PooledLinear(4, 4, dropout=1.0), r"dropout=1.0 must be a number, at least 0 and below 1"),
        (lambda: condconv.PooledLinear(4, 4, expert_dropout=-0.1), "expert_dropout=-0.1 must be a number, at least 0"),
        (lambda: condconv.SqueezeExcite(4, 4, reduction=0), "reduction=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_named(make: object, message: str) -> None:
    with pytest.raises(condconv.ArgumentError, match=message):
        make()


def train_a_step(model: nn.Module) -> None:
    model(torch.randn(2, 4, 5, 5)).sum().backward()


def test_training_without_annealing_warns_once() -> None:
    model = condconv.DynamicConv2d(4, 4, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            train_a_step(model)
    assert [str(w.message)[:33] for w in caught] == ["training at softmax temperature 3"]
    assert "RoutingSchedule" in str(caught[0].message)


@pytest.mark.parametrize("why", ["stepped", "eval", "no_grad", "temperature 1"])
def test_no_warning_where_nothing_is_amiss(why: str) -> None:
    model = condconv.DynamicConv2d(4, 4, 1)
    schedule = condconv.RoutingSchedule(model, steps=10_000) if why == "stepped" else None
    if why == "eval":
        model.eval()
    if why == "temperature 1":
        model.router.gate.anneal(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            if why == "no_grad":
                with torch.no_grad():
                    model(torch.randn(2, 4, 5, 5))
            else:
                train_a_step(model)
            if schedule is not None:
                schedule.step()


def test_a_schedule_that_nobody_steps_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condconv.routers.gates.StepWatch.PATIENCE", 3)
    model = condconv.DynamicConv2d(4, 4, 1)
    condconv.RoutingSchedule(model, steps=100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            train_a_step(model)
    assert len(caught) == 1
