"""Where the time goes: the operators of a conditional network and of its static twin, by their own time.

    python -m benchmarks.speed.hotspots     writes benchmarks/results/hotspots.csv

A profile costs time itself, so that its sum exceeds the times of the other tables; what counts is the shares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.machine import Quiet, description
from benchmarks.speed.results import MACHINE, arguments, table, wanted
from benchmarks.speed.subjects import (
    OURS,
    STATIC,
    Subject,
    image_batch,
    inference_network,
    raw_network,
)
from condconv.benchmarking.networks import TrainingStep

COLUMNS = ("cell", "model", "contender", "operator", "self_ms", "share_percent", "calls", *MACHINE)
SHOWN = 8
"""Operators of a network; all others together are the last row."""


@dataclass(frozen=True)
class Cell:
    """A network at work."""

    training: bool
    batch: int
    size: int

    @property
    def name(self) -> str:
        """A readable name, unique among the cells."""
        return f"{'training' if self.training else 'inference'} B{self.batch} {self.size}"

    def work(self, kind: str, model: str) -> Callable[[], object]:
        """One call or step of ours or of the static twin."""
        x = image_batch(self.batch, self.size)
        if self.training:
            return TrainingStep(raw_network(kind, model), x)
        network = inference_network(Subject(kind), model)
        return torch.no_grad()(lambda: network(x))


CELLS = (Cell(False, 1, 224), Cell(False, 16, 224), Cell(True, 16, 224), Cell(True, 32, 96))
QUICK = (Cell(False, 1, 32),)


def operators(call: Callable[[], object], calls: int) -> list[tuple[str, float, int]]:
    """Name, own time in milliseconds and number of each operator in one call, slowest first."""
    for _ in range(2):
        call()
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(calls):
            call()
    events = watched.key_averages()
    found = [(event.key, event.self_cpu_time_total / 1e3 / calls, event.count // calls) for event in events]
    return sorted(found, key=lambda one: -one[1])


def rows(cell: Cell, given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Profile ours and the static twin."""
    for kind in (STATIC, OURS):
        found = operators(cell.work(kind, given.model), 1 if given.quick else 5)
        total = sum(ms for _, ms, _ in found)
        rest = found[SHOWN:]
        for name, ms, calls in [*found[:SHOWN], ("all others", sum(r[1] for r in rest), sum(r[2] for r in rest))]:
            yield {
                "cell": cell.name, "model": given.model, "contender": kind, "operator": name, "self_ms": f"{ms:.3f}",
                "share_percent": f"{100 * ms / total:.1f}", "calls": calls,
            }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Profile all cells, or those that --only names."""
    given = arguments("hotspots", __doc__, words, model="condconv_efficientnet_b0_8e")
    quiet = Quiet(0 if given.quick else 2)
    with table(given.out / f"hotspots{given.suffix}.csv", COLUMNS, given.only) as add:
        for cell in wanted(given, QUICK if given.quick else CELLS):
            for row in rows(cell, given):
                add({**row, **description(), **quiet.columns()})


if __name__ == "__main__":
    main(sys.argv[1:])
