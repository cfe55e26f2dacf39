from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from condconv.data import ImageView, Source, open_source
from condconv.training.config import TrainConfig
from condconv.training.evaluation import evaluate, latency_ms
from condconv.training.networks import matching_width, output_stride, plan_networks
from condconv.training.routing import conditional_layers


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("digits").limited(64, 50)


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (16, 2), (28, 4), (32, 4), (63, 4), (64, None), (224, None)])
def test_small_inputs_keep_a_last_map_of_seven_pixels(source: Source, side: int, stride: int | None) -> None:
    from dataclasses import replace

    assert output_stride(TrainConfig(data="digits"), replace(source, image_size=(side, side))) == stride
    assert output_stride(TrainConfig(data="digits", output_stride=8), source) == 8


def test_three_networks_from_one_seed(source: Source) -> None:
    config = TrainConfig(data="digits", twin=True, num_experts=4, output_stride=4)
    conditional, static, widened = plan_networks(config, source)
    assert set(conditional_layers(conditional.build()).values()) == {4}
    assert not conditional_layers(static.build()) and not conditional_layers(widened.build())
    assert conditional.ratio > 1 and static.ratio == 1
    assert abs(widened.cost.macs / conditional.cost.macs - 1) <= 0.02
    for spec in (conditional, static, widened):
        first, second = spec.build().state_dict(), spec.build().state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
    image = torch.rand(2, 1, 8, 8)
    assert all(spec.build().eval()(image).shape == (2, 10) for spec in (conditional, static, widened))


def test_names_of_the_zoo_bring_their_own_layers(source: Source) -> None:
    config = TrainConfig(data="digits", model="condconv_mobilenetv1_025", num_experts=3, twin=True, output_stride=4)
    conditional, static, _ = plan_networks(config, source)
    assert set(conditional_layers(conditional.build()).values()) == {3}
    assert not conditional_layers(static.build())
    alone = plan_networks(TrainConfig(data="digits", model="condconv_mobilenetv1_025", variant="none"), source)
    assert [spec.name for spec in alone] == ["static"]


class _Constant(nn.Module):
    """Always says class 1."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.eye(10)[1].expand(len(images), 10)


def test_evaluation_counts_every_image_once(source: Source) -> None:
    result = evaluate(_Constant(), ImageView(source, train=False), 10, 7, 0, torch.device("cpu"))
    assert int(result.confusion.sum()) == 50
    assert torch.equal(result.confusion[:, 1], source.val.labels.bincount(minlength=10))
    assert result.accuracy == pytest.approx(float((source.val.labels == 1).float().mean()))
    assert latency_ms(_Constant(), (1, 8, 8), torch.device("cpu")) > 0


def test_a_width_of_its_own_and_the_one_that_matches_a_conditional_network(source: Source) -> None:
    config = TrainConfig(data="digits", width=0.5, num_experts=4, output_stride=4, twin=True)
    conditional, static, widened = plan_networks(config, source)
    assert (
        static.cost.macs
        < plan_networks(TrainConfig(data="digits", variant="none", output_stride=4), source)[0].cost.macs
    )
    alone = TrainConfig(data="digits", variant="none", output_stride=4, width=matching_width(config, source))
    assert plan_networks(alone, source)[0].cost == widened.cost != static.cost
    assert abs(widened.cost.macs / conditional.cost.macs - 1) <= 0.02
