from __future__ import annotations

import pytest
import torch
from torch import nn

import condconv
from condconv import DynamicConv2d
from condconv.training.ema import EMA


def train(network: nn.Module, average: EMA, schedule: condconv.RoutingSchedule, steps: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 5, 5)).square().mean().backward()
        optimizer.step()
        schedule.step()
        average.update(network)


def make() -> tuple[nn.Module, EMA, condconv.RoutingSchedule]:
    torch.manual_seed(0)
    network = nn.Sequential(DynamicConv2d(3, 4, 3, num_experts=2), nn.BatchNorm2d(4))
    schedule = condconv.RoutingSchedule(network, steps=6)
    return network, EMA(network, 0.9), schedule


def test_parameters_and_statistics_are_averaged_and_everything_else_is_copied() -> None:
    network, average, schedule = make()
    naive = {name: value.clone().double() for name, value in network.state_dict().items()}
    for step in range(1, 9):
        train(network, average, schedule, 1)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            is_averaged = "running" in name or name in dict(network.named_parameters())
            naive[name] = decay * naive[name] + (1 - decay) * value.double() if is_averaged else value.double()
        averaged = average.network.state_dict()
        assert all(torch.allclose(averaged[name].double(), naive[name], atol=1e-6) for name in naive)
        temperature = average.network[0].router.gate.temperature
        assert torch.equal(temperature, network[0].router.gate.temperature)
        assert float(temperature) == pytest.approx(schedule.value)
    assert schedule.value == 1.0
    counts = [net[1].num_batches_tracked for net in (network, average.network)]
    assert counts[0] == counts[1] == 8
    assert not torch.equal(network[1].running_var, average.network[1].running_var)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_it_goes_on_from_its_state() -> None:
    network, average, schedule = make()
    train(network, average, schedule, 3)
    again = EMA(network, 0.9)
    again.load_state_dict(average.state_dict())
    train(network, average, schedule, 1)
    again.update(network)
    first, second = average.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
