"""Placement by cost: n / (H' W') of each layer, a limit on it, and what bad limits get."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import condconv
from condconv.cli.main import main
from condconv.counting import count
from condconv.errors import ArgumentError
from condconv.layers import ConditionalLayer
from condconv.models import create_model, static_twin
from tests.contract.cases import MIXTURES


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


@pytest.mark.parametrize("variant", MIXTURES)
def test_a_layers_overhead_is_experts_over_positions(variant: str) -> None:
    plan = condconv.plan(net(), variant, targets=".", num_experts=4, input_size=(3, 16, 16))
    assert [row.overhead for row in plan.layers if row.kind != "router"] == pytest.approx(
        [4 / 256, 4 / 64, 4 / 16, 4 / 16, 4.0]
    )
    assert plan.overhead == pytest.approx(plan.macs_after / plan.macs_before - 1)
    assert "6.2%" in str(plan) and f"{(1 + plan.overhead) ** 0.5:.3f} times as wide" in str(plan)
    assert condconv.plan(net(), variant, targets=".").overhead is None


@pytest.mark.parametrize("variant", MIXTURES)
def test_a_limit_leaves_out_what_is_dearer_and_says_so(variant: str) -> None:
    plan = condconv.plan(net(), variant, targets=".", num_experts=4, input_size=(3, 16, 16), max_overhead=4 / 64)
    assert plan.converted == ("0", "1")
    assert {row.name: row.why for row in plan.layers if row.name in "236"} == {
        "2": "mixing costs 25.0%, above 0.0625", "3": "mixing costs 25.0%, above 0.0625",
        "6": "mixing costs 400.0%, above 0.0625",
    }  # fmt: skip
    assert count(plan.apply(), (3, 16, 16)).macs == plan.macs_after


@pytest.mark.parametrize("limit", [-0.1, 0.0, float("nan"), float("inf")])
def test_a_limit_is_a_positive_share(limit: float) -> None:
    with pytest.raises(ArgumentError, match="max_overhead=.* must be a number, above 0; pass 0.05"):
        condconv.convert(net(), max_overhead=limit, input_size=(3, 16, 16))


def test_a_limit_that_leaves_nothing_is_told_the_smallest_overhead() -> None:
    with pytest.raises(ArgumentError, match=r"smallest overhead is 0.0156, of 0; pass that or more"):
        condconv.plan(net(), targets=".", num_experts=4, input_size=(3, 16, 16), max_overhead=0.01)


def test_a_limit_needs_the_input_size() -> None:
    with pytest.raises(ArgumentError, match="add input_size"):
        condconv.plan(net(), max_overhead=0.05)
    with pytest.raises(ArgumentError, match="add input_size"):
        create_model("condconv_mobilenetv1_025", max_overhead=0.05)


def test_a_papers_network_by_cost() -> None:
    size, name = (3, 64, 64), "condconv_mobilenetv1_025"
    limited = create_model(name, num_classes=10, max_overhead=0.6, input_size=size)
    published = create_model(name, num_classes=10)
    conditional = [sum(isinstance(m, ConditionalLayer) for m in model.modules()) for model in (limited, published)]
    assert 0 < conditional[0] < conditional[1]
    twin = static_twin(name, num_classes=10, max_overhead=0.6, input_size=size)
    assert not any(isinstance(m, ConditionalLayer) for m in twin.modules())
    assert limited(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    with pytest.raises(ArgumentError, match="max_overhead=0.6 has no meaning for a static network"):
        create_model("mobilenetv1_025", max_overhead=0.6)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "cifar_resnet8", "--targets", "layer", "--num-experts", "8"]
    assert main([*words, "--max-overhead", "0.05"]) == 0
    shown = capsys.readouterr().out
    assert "mixing costs 12.5%, above 0.05" in shown and "times as wide" in shown
    assert main([*words, "--max-overhead", "0.001"]) == 2
    assert "the smallest overhead is 0.00781" in capsys.readouterr().err
