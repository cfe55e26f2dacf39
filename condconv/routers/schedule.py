"""Annealing of the softmax temperature (Dynamic Convolution, section 3.3: 30 → 1, linearly, over ten epochs)."""

from __future__ import annotations

from torch import nn

from condconv.arguments import a_module, integer
from condconv.errors import CheckpointError, argument_error
from condconv.routers.gates import SoftmaxGate, check_temperature


class TemperatureSchedule:
    """Anneals the temperature of every softmax gate in a model linearly; call `step()` after each optimiser step.

    After k steps T = end + (start − end) · max(0, 1 − k / steps). The temperatures are set to T at once, so a model
    whose gates stand elsewhere starts at `start`. The temperature lives in the gates' buffers; this object only knows
    how many steps were taken, and saves that in `state_dict`.

    Args:
        model: any module; its `SoftmaxGate`s are found by themselves. None is an error: there is nothing to anneal.
        steps: optimiser steps from `start` to `end`; the paper's are those of ten epochs.
        start: temperature before the first step.
        end: temperature from step `steps` on.

    Raises:
        ArgumentError: no softmax gate in the model, `steps` below 1, or a temperature that is not positive.
    """

    def __init__(self, model: nn.Module, steps: int, start: float = 30.0, end: float = 1.0) -> None:
        where = "TemperatureSchedule"
        a_module(where, "model", model)
        self._gates = [module for module in model.modules() if isinstance(module, SoftmaxGate)]
        if not self._gates:
            raise argument_error(
                where, "model", type(model).__name__, "has no softmax gate", "train without a schedule: none is needed"
            )
        self.steps = integer(where, "steps", steps, 1)
        self.start, self.end = check_temperature(where, "start", start), check_temperature(where, "end", end)
        self._taken = 0
        for gate in self._gates:
            gate.watch.scheduled = True
        self._apply()

    @property
    def temperature(self) -> float:
        """The current temperature T."""
        return self.end + (self.start - self.end) * max(0.0, 1 - self._taken / self.steps)

    def step(self) -> None:
        """Count one optimiser step and set the gates' temperature."""
        self._taken += 1
        self._apply()

    def _apply(self) -> None:
        for gate in self._gates:
            gate.set_temperature(self.temperature)

    def state_dict(self) -> dict[str, int | float]:
        """Return what `load_state_dict` needs to go on from here."""
        return {"taken": self._taken, "steps": self.steps, "start": self.start, "end": self.end}

    def load_state_dict(self, state: dict[str, int | float]) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: keys are missing or unknown.
            ArgumentError: a value is none that the schedule could have had.
        """
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise CheckpointError(
                f"TemperatureSchedule: the state {state!r} must have the keys {', '.join(self.state_dict())}; "
                "load what its own state_dict() returned"
            )
        where = "TemperatureSchedule.load_state_dict"
        taken, steps = (integer(where, name, state[name], least) for name, least in (("taken", 0), ("steps", 1)))
        start, end = (check_temperature(where, name, state[name]) for name in ("start", "end"))
        self._taken, self.steps, self.start, self.end = taken, steps, start, end
        self._apply()
