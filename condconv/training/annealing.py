"""The schedule of a run's gates, such as the softmax temperature."""

from __future__ import annotations

from torch import nn

from condconv.routers import RoutingSchedule, annealed_gates
from condconv.runs.config import TrainConfig

ANNEALING_EPOCHS = 10


def annealing(network: nn.Module, config: TrainConfig, steps_per_epoch: int) -> RoutingSchedule | None:
    """The schedule of a network with gates to anneal, None for one without."""
    if not annealed_gates(network):
        return None
    steps = annealing_steps(config, steps_per_epoch)
    return RoutingSchedule(network, steps, config.temperature_start, config.temperature_end)


def annealing_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """As asked for; else ten epochs as in the paper, but at most half of the run, so that a short one also trains at
    the last temperature.
    """
    if config.temperature_epochs is not None:
        return config.temperature_epochs * steps_per_epoch
    return max(1, min(ANNEALING_EPOCHS * steps_per_epoch, steps_per_epoch * config.epochs // 2))
