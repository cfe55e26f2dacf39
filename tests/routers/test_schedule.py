"""The temperature schedule of Dynamic Convolution."""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import condconv


def model() -> nn.Module:
    return nn.Sequential(condconv.DynamicConv2d(3, 4, 1), condconv.DynamicConv2d(4, 4, 1))


def temperatures(net: nn.Module) -> list[float]:
    return [float(m.temperature) for m in net.modules() if isinstance(m, condconv.SoftmaxGate)]


def test_it_anneals_linearly_and_stops() -> None:
    net = model()
    schedule = condconv.RoutingSchedule(net, steps=29)
    seen = [temperatures(net)[0]]
    for _ in range(31):
        schedule.step()
        assert len(set(temperatures(net))) == 1
        seen.append(temperatures(net)[0])
    assert seen == pytest.approx([*range(30, 0, -1), 1, 1])
    assert schedule.value == 1


def test_the_temperature_travels_with_the_weights() -> None:
    net, fresh = model(), model()
    condconv.RoutingSchedule(net, steps=10, start=12, end=3)
    assert temperatures(fresh) == [30, 30]
    fresh.load_state_dict(net.state_dict())
    assert temperatures(fresh) == temperatures(copy.deepcopy(net)) == [12, 12]


def test_it_resumes() -> None:
    net, other = model(), model()
    schedule = condconv.RoutingSchedule(net, steps=7)
    for _ in range(3):
        schedule.step()
    again = condconv.RoutingSchedule(other, steps=99)
    again.load_state_dict(schedule.state_dict())
    assert temperatures(other) == temperatures(net)
    schedule.step(), again.step()
    assert temperatures(other) == temperatures(net)
    with pytest.raises(condconv.CheckpointError, match="must have the keys"):
        again.load_state_dict({"taken": 1})


def test_a_step_of_any_thread_counts() -> None:
    net, x = model().eval(), torch.randn(2, 3, 4, 4)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # Threads meet in the middle of a step.
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(50):
                schedule = condconv.RoutingSchedule(net, steps=29)
                before = net(x)
                list(pool.map(lambda _, schedule=schedule: schedule.step(), range(28)))
                assert temperatures(net) == pytest.approx([2, 2])
                assert not torch.equal(net(x), before)
    finally:
        sys.setswitchinterval(interval)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(condconv.ArgumentError, match="model='Linear' has no gate to anneal"):
        condconv.RoutingSchedule(nn.Linear(2, 2), steps=5)
    with pytest.raises(condconv.ArgumentError, match="steps=0 must be at least 1"):
        condconv.RoutingSchedule(model(), steps=0)
    with pytest.raises(condconv.ArgumentError, match="end=0 must be a number, at least 1e-30"):
        condconv.RoutingSchedule(model(), steps=5, end=0)


def test_it_acts_on_compiled_models() -> None:
    torch._dynamo.reset()
    net = model().eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 4, 4)
    before = compiled(x)
    condconv.RoutingSchedule(net, steps=1).step()
    assert not torch.equal(compiled(x), before)
    torch.testing.assert_close(compiled(x), net(x))
