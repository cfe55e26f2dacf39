"""Advice appears where its threshold is crossed, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from condconv.analysis import Analysis, advise
from condconv.analysis.collect import Accuracy
from tests.analysis.networks import random_analysis, synthetic_analysis


def kinds(analysis: Analysis) -> list[tuple[str, str]]:
    return [(advice.kind, advice.where) for advice in advise(analysis)]


def two_layers(alpha: Tensor) -> Analysis:
    """`alpha` (N, n) beside a healthy layer."""
    torch.manual_seed(0)
    coefficients = {"suspect": alpha, "healthy": torch.rand(len(alpha), 4)}
    return synthetic_analysis(coefficients, torch.arange(len(alpha)) % 3)


def test_a_healthy_network_gets_none() -> None:
    assert kinds(random_analysis()) == []


def test_constant_routing_is_to_be_folded() -> None:
    constant = torch.full((50, 4), 0.5) + 0.01 * torch.rand(50, 4)
    assert kinds(two_layers(constant)) == [("fold to static", "suspect")]
    varied = torch.full((50, 4), 0.5) + 0.3 * torch.rand(50, 4)
    assert kinds(two_layers(varied)) == []


@pytest.mark.parametrize(("right", "trained"), [(17, False), (23, False), (24, True), (50, True)])
def test_a_network_at_chance_is_to_be_trained_and_neither_folded_nor_pruned(right: int, trained: bool) -> None:
    constant = torch.full((50, 4), 0.5)
    constant[:, 0] = 0.0
    analysis = two_layers(constant)
    analysis.collection.accuracy = Accuracy(right, 50)  # chance is 16.7 of 50, and its standard deviation 3.3
    found = [kind for kind, _ in kinds(analysis)]
    assert found == (["fold to static", "drop experts"] if trained else ["train the network"])


def test_dead_experts_are_to_be_dropped_and_named() -> None:
    alpha = torch.rand(2000, 4)
    alpha[:, [1, 3]] *= 0.01
    alpha[0, 1] = alpha[0, 3] = alpha[1, 3] = 0.9
    (advice,) = advise(two_layers(alpha))
    assert (advice.kind, advice.where) == ("drop experts", "suspect")
    assert "hardly ever used: 1, 3." in advice.text
    alpha[2:4, 3] = 0.9  # 4 of 2,000 images are more than 0.1 %.
    (advice,) = advise(two_layers(alpha))
    assert "hardly ever used: 1." in advice.text


def test_a_collapsed_router() -> None:
    alpha = torch.zeros(50, 4)
    alpha[:, 2] = torch.rand(50)
    found = {advice.kind: advice for advice in advise(two_layers(alpha))}
    assert "One expert (2)" in found["collapsed router"].text
    assert set(found) == {"drop experts", "collapsed router"}


def test_a_temperature_that_was_not_annealed() -> None:
    hot = replace(random_analysis(), temperatures={"early": 30.0, "late": 1.0})
    (advice,) = advise(hot)
    assert (advice.kind, advice.where) == ("anneal the temperature", "early")
    assert advise(replace(hot, temperatures={"early": 1.0, "late": 1.0})) == []


def test_experts_that_are_copies() -> None:
    analysis = random_analysis()
    copied = {name: torch.ones(4, 4) for name in ("early.dw", "early.pw")}
    copies = replace(analysis, weight_similarity={**analysis.weight_similarity, **copied})
    assert kinds(copies) == [("experts are still copies", "early")]


def test_every_piece_of_advice_names_its_threshold_and_its_value() -> None:
    for advice in advise(two_layers(torch.zeros(50, 4))):
        assert any(character.isdigit() for character in advice.rule)
        assert any(character.isdigit() for character in advice.value)
