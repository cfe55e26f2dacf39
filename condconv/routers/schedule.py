"""Annealing of the gates, such as the softmax temperature of Dynamic Convolution (section 3.3: 30 → 1)."""

from __future__ import annotations

import threading

from torch import nn

from condconv.arguments import a_module, integer, number
from condconv.errors import CheckpointError, argument_error
from condconv.routers.gates import AnnealedGate

_stepping = threading.Lock()
"""Counting and setting belong together. One for all schedules, which can then be copied and pickled."""


class RoutingSchedule:
    """Anneals every gate of a model that has something to anneal; call `step()` after each optimiser step.

    After k steps a gate's value is end + (start − end) · max(0, 1 − k / steps), with the start and the end that belong
    to the gate (a softmax: temperature 30 → 1), or with those given here. The values are set at once, so a model whose
    gates stand elsewhere starts at `start`. They live in the gates' buffers; this object only knows how many steps were
    taken, and saves that in `state_dict`.

    Args:
        model: any module; its gates are found by themselves. None to anneal is an error.
        steps: optimiser steps from start to end; the papers' are those of ten epochs.
        start: value before the first step; None for each gate's own.
        end: value from step `steps` on; None for each gate's own.

    Raises:
        ArgumentError: no gate to anneal in the model, `steps` below 1, or a value that a gate does not allow.
    """

    def __init__(self, model: nn.Module, steps: int, start: float | None = None, end: float | None = None) -> None:
        where = "RoutingSchedule"
        a_module(where, "model", model)
        self._gates = annealed_gates(model)
        if not self._gates:
            rule, remedy = "has no gate to anneal", "train without a schedule: none is needed"
            raise argument_error(where, "model", type(model).__name__, rule, remedy)
        self.steps = integer(where, "steps", steps, 1)
        self.start, self.end = self._checked(where, "start", start), self._checked(where, "end", end)
        self._taken = 0
        for gate in self._gates:
            gate.watch.scheduled = True
        self._apply()

    @property
    def value(self) -> float:
        """Where the first gate stands."""
        return self._gates[0].value

    def step(self) -> None:
        """Count one optimiser step and set the gates' values; any thread may."""
        with _stepping:
            self._taken += 1
            self._apply()

    def _checked(self, where: str, name: str, value: float | None) -> float | None:
        least = max(gate.least for gate in self._gates)
        remedy = "leave it out for each gate's own"
        return None if value is None else number(where, name, value, minimum=least, maximum=1e30, remedy=remedy)

    def _apply(self) -> None:
        left = max(0.0, 1 - self._taken / self.steps)
        for gate in self._gates:
            start = gate.start if self.start is None else self.start
            end = gate.end if self.end is None else self.end
            gate.anneal(end + (start - end) * left)

    def state_dict(self) -> dict[str, int | float | None]:
        """Return what `load_state_dict` needs to go on from here."""
        return {"taken": self._taken, "steps": self.steps, "start": self.start, "end": self.end}

    def load_state_dict(self, state: dict[str, int | float | None]) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: keys are missing or unknown.
            ArgumentError: a value is none that the schedule could have had.
        """
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise CheckpointError(
                f"RoutingSchedule: the state {state!r} must have the keys {', '.join(self.state_dict())}; "
                "load what its own state_dict() returned"
            )
        where = "RoutingSchedule.load_state_dict"
        taken, steps = (integer(where, name, state[name], least) for name, least in (("taken", 0), ("steps", 1)))
        start, end = (self._checked(where, name, state[name]) for name in ("start", "end"))
        self._taken, self.steps, self.start, self.end = taken, steps, start, end
        self._apply()


def annealed_gates(model: nn.Module) -> list[AnnealedGate]:
    """The gates of a model that have something to anneal."""
    return [module for module in model.modules() if isinstance(module, AnnealedGate)]
