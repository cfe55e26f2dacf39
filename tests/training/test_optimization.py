from __future__ import annotations

import pytest
from torch import nn

from condconv import CondConv2d
from condconv.errors import ArgumentError
from condconv.runs.config import TrainConfig
from condconv.training.optimization import (
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
    peak_learning_rate,
)


def config(**settings: object) -> TrainConfig:
    return TrainConfig(data="digits", **settings)


def factors(steps: int, **settings: object) -> list[float]:
    return [learning_rate_factor(config(**settings), step, 10) for step in range(steps)]


def test_cosine_warms_up_and_ends_at_zero() -> None:
    curve = factors(101, epochs=10)
    assert curve[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert max(curve) == curve[5] == 1.0
    assert all(later < earlier for earlier, later in zip(curve[5:], curve[6:], strict=False))
    assert curve[100] == pytest.approx(0)


def test_steps_and_exponential_decay_go_through_the_same_points() -> None:
    settings = {"epochs": 10, "warmup_epochs": 0.2, "decay_epochs": 2.4, "decay_factor": 0.97}
    steps, smooth = factors(100, schedule="step", **settings), factors(100, schedule="exponential", **settings)
    assert steps[:2] == smooth[:2] == pytest.approx([1 / 3, 2 / 3])
    assert steps[2] == 1.0
    for decays in range(1, 5):
        first = 24 * decays
        assert steps[first] == pytest.approx(0.97**decays) == smooth[first]
        assert steps[first - 1] == pytest.approx(0.97 ** (decays - 1))
        assert smooth[first - 1] < steps[first - 1]


def test_no_warm_up_where_none_is_asked_for() -> None:
    assert factors(1, warmup_epochs=0.0) == [1.0]


def test_learning_rate_scales_with_the_global_batch() -> None:
    assert peak_learning_rate(config(lr=0.1), 4096) == 0.1
    assert peak_learning_rate(config(lr=0.1, base_batch=256), 4096) == pytest.approx(1.6)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), CondConv2d(4, 5, 1, num_experts=2), nn.Flatten())


def test_every_parameter_is_in_one_group_with_its_decay_and_rate() -> None:
    net = network()
    for decay_biases in (False, True):
        groups = parameter_groups(net, config(weight_decay=0.5, decay_biases=decay_biases, router_lr_factor=0.1), 1.0)
        found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
        assert len(found) == sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
        bias = 0.5 if decay_biases else 0.0
        conv, norm, layer = net[0], net[1], net[2]
        linear = layer.router.body[-1]
        expected = {
            conv.weight: (1.0, 0.5), conv.bias: (1.0, bias), norm.weight: (1.0, 0.0), norm.bias: (1.0, 0.0),
            layer.weight: (1.0, 0.5), layer.bias: (1.0, bias), linear.weight: (0.1, 0.5), linear.bias: (0.1, bias),
        }  # fmt: skip
        assert {id(p): value for p, value in expected.items()} == found


def test_optimizers_by_timms_names() -> None:
    net = network()
    tf_like = make_optimizer(net, config(optimizer="rmsproptf", eps=1e-3, momentum=0.8), 0.1)
    assert type(tf_like).__name__ == "RMSpropTF"
    assert (tf_like.defaults["eps"], tf_like.defaults["momentum"], tf_like.defaults["alpha"]) == (1e-3, 0.8, 0.9)
    assert make_optimizer(net, config(), 0.1).defaults["nesterov"]
    assert not make_optimizer(net, config(optimizer="momentum"), 0.1).defaults["nesterov"]
    assert {group["weight_decay"] for group in make_optimizer(net, config(), 0.1).param_groups} == {0.0, 1e-4}
    with pytest.raises(ArgumentError, match="--optimizer: unknown optimizer 'rmsprobtf'; did you mean 'rmsproptf'"):
        make_optimizer(net, config(optimizer="rmsprobtf"), 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"ema": float("nan")}, r"ema=nan must lie in \[0, 1\)"),
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"schedule": "cosin"}, "--schedule: unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"auto_augment": "imagnet"}, "--auto-augment: .*did you mean 'imagenet'"),
        ({"share": "blocks"}, "share='blocks' is no way to share routers; pass none, block, network or a number"),
        ({"share": "0"}, "share='0' is no way to share"),
        ({"mixup": -1.0}, "mixup=-1.0 must be finite and not negative"),
        ({"pretrained": "x", "expert_init_scale": 2.0}, "expert_init_scale=2.0 does not go with --pretrained"),
        ({"compile": True, "activation_checkpointing": True}, "does not go with --compile"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        config(**settings)


def test_a_fast_run_keeps_everything_but_its_length() -> None:
    short = config(epochs=300, batch_size=4, accumulate=2, recipe=None, ema=0.9).shortened(processes=2)
    assert (short.epochs, short.limit_train, short.limit_val, short.ema) == (1, 48, 8, 0.9)
