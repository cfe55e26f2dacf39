from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from condconv.data import Source, open_source
from condconv.errors import ArgumentError, DataError
from condconv.evaluation.evaluate import evaluate
from condconv.evaluation.latency import latencies_ms
from condconv.evaluation.routing import experts_by_layer
from condconv.routers import Router, SigmoidGate, SoftmaxGate
from condconv.runs.building import NetworkBuilder
from condconv.runs.config import TrainConfig
from condconv.runs.networks import matching_width, overhead_advice, plan_networks
from condconv.tasks import task_of
from condconv.tasks.classify.task import output_stride
from condconv.training.experiment import require_class_count


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("digits").limited(64, 50)


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (16, 2), (28, 4), (32, 4), (63, 4), (64, None), (224, None)])
def test_small_inputs_keep_a_last_map_of_seven_pixels(source: Source, side: int, stride: int | None) -> None:
    assert output_stride(TrainConfig(data="digits"), replace(source, image_size=(side, side))) == stride
    assert output_stride(TrainConfig(data="digits", output_stride=8), source) == 8


def test_three_networks_from_one_seed(source: Source) -> None:
    config = TrainConfig(data="digits", twin=True, num_experts=4, output_stride=4)
    conditional, static, widened = plan_networks(task_of(config), source)
    assert set(experts_by_layer(conditional.build()).values()) == {4}
    assert not experts_by_layer(static.build()) and not experts_by_layer(widened.build())
    assert conditional.ratio > 1 and static.ratio == 1
    assert abs(widened.cost.macs / conditional.cost.macs - 1) <= 0.02
    for spec in (conditional, static, widened):
        first, second = spec.build().state_dict(), spec.build().state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
    image = torch.rand(2, 1, 8, 8)
    assert all(spec.build().eval()(image).shape == (2, 10) for spec in (conditional, static, widened))


def test_names_of_the_zoo_bring_their_own_layers(source: Source) -> None:
    config = TrainConfig(data="digits", model="condconv_mobilenetv1_025", num_experts=3, twin=True, output_stride=4)
    conditional, static, _ = plan_networks(task_of(config), source)
    assert set(experts_by_layer(conditional.build()).values()) == {3}
    assert not experts_by_layer(static.build())
    alone = plan_networks(task_of(TrainConfig(data="digits", model="condconv_mobilenetv1_025", variant="none")), source)
    assert [spec.name for spec in alone] == ["static"]


def test_tiles_are_paid_for_and_need_routers_of_their_own(source: Source) -> None:
    config = TrainConfig(data="digits", num_experts=2, output_stride=4, share="none")
    plain, tiled = (plan_networks(task_of(replace(config, tiles=tiles)), source)[0] for tiles in (1, 2))
    assert tiled.cost.macs > plain.cost.macs and tiled.cost.params == plain.cost.params
    image = torch.rand(2, 1, 8, 8)
    assert tiled.build().eval()(image).shape == (2, 10)
    assert set(experts_by_layer(tiled.build()).values()) == {2}
    with pytest.raises(ArgumentError, match="has no router of its own; .*--share none"):
        plan_networks(task_of(replace(config, tiles=2, share="block")), source)


class _Constant(nn.Module):
    """Always says class 1."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.eye(10)[1].expand(len(images), 10)


def test_evaluation_counts_every_image_once(source: Source) -> None:
    task = task_of(TrainConfig(data="digits"))
    result = evaluate(_Constant(), source, task, batch_size=7, workers=0, device=torch.device("cpu")).found
    assert int(result.confusion.sum()) == 50
    assert torch.equal(result.confusion[:, 1], source.val.labels.bincount(minlength=10))
    assert result.score == pytest.approx(float((source.val.labels == 1).float().mean()))
    times = latencies_ms({"one": _Constant(), "other": _Constant()}, (1, 8, 8), torch.device("cpu"))
    assert times.keys() == {"one", "other"} and min(times.values()) > 0


def test_a_width_of_its_own_and_the_one_that_matches_a_conditional_network(source: Source) -> None:
    config = TrainConfig(data="digits", width=0.5, num_experts=4, output_stride=4, twin=True)
    conditional, static, widened = plan_networks(task_of(config), source)
    assert (
        static.cost.macs
        < plan_networks(task_of(TrainConfig(data="digits", variant="none", output_stride=4)), source)[0].cost.macs
    )
    alone = TrainConfig(data="digits", variant="none", output_stride=4, width=matching_width(task_of(config), source))
    assert plan_networks(task_of(alone), source)[0].cost == widened.cost != static.cost
    assert abs(widened.cost.macs / conditional.cost.macs - 1) <= 0.02


def _same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _conditional(source: Source, **settings: object) -> nn.Module:
    config = TrainConfig(data="digits", output_stride=4, num_experts=2, **settings)
    return NetworkBuilder(task_of(config), source).conditional()


def test_targets_sharing_and_gate_of_a_conversion(source: Source) -> None:
    chosen = _conditional(source, targets="last 2 blocks + ^classifier$")
    assert set(experts_by_layer(chosen)) == {
        "classifier",
        *(f"blocks.4.{i}.conv_{k}" for i in (0, 1) for k in ("dw", "pw")),
    }
    routers = {share: _routers(_conditional(source, share=share)) for share in ("none", "block", "2", "network")}
    assert [len(found) for found in routers.values()] == sorted({len(f) for f in routers.values()}, reverse=True)
    assert len(routers["network"]) == 1
    assert all(isinstance(r.gate, SoftmaxGate) for r in _routers(_conditional(source, gate="softmax")))
    dynamic = _conditional(source, variant="dynamic_convolution", gate="sigmoid")
    assert all(isinstance(r.gate, SigmoidGate) for r in _routers(dynamic))


def _routers(model: nn.Module) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]


def test_initial_scales_and_expert_dropout(source: Source) -> None:
    plain = _conditional(source, expert_dropout=0.2)
    scaled = _conditional(source, router_init_scale=0.0, expert_init_scale=2.0)
    assert {r.expert_dropout for r in _routers(plain)} == {0.2}
    assert all(float(r.body[-1].weight.abs().max()) == 0 for r in _routers(scaled))
    for name in experts_by_layer(plain):
        assert torch.equal(2 * plain.get_submodule(name).weight, scaled.get_submodule(name).weight)


def test_dropout_and_stochastic_depth_reach_the_network(source: Source) -> None:
    model = _conditional(source, dropout=0.3, drop_path=0.2)
    assert model.drop_rate == 0.3
    paths = [float(m.drop_prob) for m in model.modules() if type(m).__name__ == "DropPath"]
    assert paths and paths == sorted(paths) and max(paths) <= 0.2


def test_networks_begin_with_given_static_weights(source: Source, tmp_path: Path) -> None:
    static = NetworkBuilder(task_of(TrainConfig(data="digits", output_stride=4, seed=5)), source).static().eval()
    save_file(static.state_dict(), tmp_path / "static.safetensors", {"classes": json.dumps(source.classes)})
    config = TrainConfig(data="digits", output_stride=4, pretrained=str(tmp_path / "static.safetensors"), num_experts=2)
    builder = NetworkBuilder(task_of(config), source)
    image = torch.rand(2, 1, 8, 8)
    assert _same(builder.static(), static)
    torch.testing.assert_close(builder.conditional().eval()(image), static(image), atol=1e-4, rtol=1e-4)


def test_what_does_not_go_together_is_refused(source: Source) -> None:
    zoo = {"data": "digits", "model": "condconv_mobilenetv1_025"}
    with pytest.raises(
        ArgumentError, match="targets='pointwise' is for conversions, .* or convert --model mobilenetv1"
    ):
        plan_networks(task_of(TrainConfig(**zoo, targets="pointwise")), source)
    with pytest.raises(ArgumentError, match="is a detector"):
        plan_networks(task_of(TrainConfig(data="digits", model="condconv_ssd_mobilenetv1_050")), source)
    with pytest.raises(DataError, match="10 classes, and the classifier is to have 1000 .* pass --num-classes 10"):
        require_class_count(TrainConfig(data="digits", num_classes=1000), source)


def test_images_smaller_than_the_total_stride_are_refused_before_the_first_step() -> None:
    source = open_source("digits").limited(20, 20)
    for model in ("cifar_resnet8", "mobilenetv1_025"):
        config = TrainConfig(data="digits", model=model, output_stride=16, variant="none")
        with pytest.raises(ArgumentError, match=rf"input_size=8 is smaller than the total stride of {model}, 16; pass"):
            plan_networks(task_of(config), source)


def test_twins_widen_layer_by_layer() -> None:
    source = open_source("digits").limited(20, 20)
    config = TrainConfig(data="digits", model="cifar_resnet8", targets="layer", share="none", twin=True, num_experts=2)
    conditional, static, widened = plan_networks(task_of(config), source)
    routers = [module for module in conditional.build().modules() if isinstance(module, Router)]
    assert len(routers) == 6
    assert abs(widened.cost.macs / conditional.cost.macs - 1) <= 0.02 < conditional.ratio - 1


def test_what_a_limit_of_the_overhead_would_change_is_said_above_8_percent() -> None:
    source = open_source("digits").limited(20, 20)
    common = {"data": "digits", "model": "cifar_resnet8", "targets": "layer", "num_experts": 8}
    config = TrainConfig(**common, output_stride=1)
    (said,) = overhead_advice(task_of(config), source, plan_networks(task_of(config), source))
    assert "more multiply-adds than its static twin" in said and "the smallest overhead is 0.125" in said
    large = replace(source, image_size=(32, 32), native=False)
    config = TrainConfig(**common, output_stride=8)
    (said,) = overhead_advice(task_of(config), large, plan_networks(task_of(config), large))
    assert "with --max-overhead 0.05 it is" in said
    for quiet in (replace(config, output_stride=2), replace(config, max_overhead=0.05)):
        assert not list(overhead_advice(task_of(quiet), large, plan_networks(task_of(quiet), large)))
