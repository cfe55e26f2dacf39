"""A training step (forward, backward, SGD with momentum) beside that of the static twin and of timm's implementation.

    python -m benchmarks.speed.training     writes benchmarks/results/training.csv

Eager, and as torch.compile makes it of the whole network. All three train channels_last with batch norm in training
mode. Memory is measured of eager steps, in processes of their own: see `memory.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed.results import LIMITS, MACHINE, TIMING, arguments, run_cells, timing_columns
from benchmarks.speed.roofline import Roofline
from benchmarks.speed.subjects import (
    OURS,
    STATIC,
    TIMM,
    Work,
    image_batch,
    raw_network,
    timm_name,
)
from condconv.benchmarking import memory
from condconv.benchmarking.networks import TrainingStep, strategies_of
from condconv.timing import measure

COLUMNS = (
    "cell", "model", "mode", "batch", "size", "contender", "strategy", *TIMING, *LIMITS, *memory.MEMORY, *MACHINE
)  # fmt: skip
EAGER, COMPILED = "eager", "compiled"
WEIGHT_PASSES = 8
"""How often a step reads or writes each weight at least: read forward and backward, its gradient written; SGD with
momentum reads weight, gradient and momentum, and writes weight and momentum."""


@dataclass(frozen=True)
class Cell:
    """A batch to train on."""

    batch: int
    size: int
    mode: str = EAGER

    @property
    def name(self) -> str:
        """A readable name, unique among the cells."""
        return f"training B{self.batch} {self.size}" + (" compiled" if self.mode == COMPILED else "")


CELLS = (Cell(16, 224), Cell(32, 96), Cell(32, 96, COMPILED))
QUICK = (Cell(2, 32),)


def limit_ms(work: Work, batch: int, roofline: Roofline) -> float:
    """The roofline of a step: three convolutions, four mixings (forward, backward, experts, coefficients)."""
    macs = batch * (3 * work.convolution + 4 * work.mixing)
    return roofline.ms(macs, 4 * (work.static_weights + work.expert_weights), passes=WEIGHT_PASSES)


def step_of(kind: str, model: str, x: Tensor, mode: str) -> TrainingStep:
    """A step of a network; compiled code is one graph, or it fails."""
    network = raw_network(kind, model)
    return TrainingStep(network, x, torch.compile(network, fullgraph=True) if mode == COMPILED else None)


def rows(cell: Cell, given: argparse.Namespace, roofline: Roofline) -> Iterator[dict[str, object]]:
    """Measure one cell: a row each for the static twin, timm's network and ours."""
    kinds = [kind for kind in (STATIC, TIMM, OURS) if kind != TIMM or timm_name(given.model)]
    x = image_batch(cell.batch, cell.size)
    steps = {kind: step_of(kind, given.model, x, cell.mode) for kind in kinds}
    ran = {kind: "" if cell.mode == COMPILED else strategies_of(step) for kind, step in steps.items()}
    for step in steps.values():
        step()  # Which compiles.
    timings = measure(steps, 0.5, given.quick)
    static_work = Work.of(given.model, STATIC, cell.size)
    static_limit = limit_ms(static_work, cell.batch, roofline)
    for kind in kinds:
        work = Work.of(given.model, kind, cell.size)
        limit = limit_ms(work, cell.batch, roofline)
        read = 4 * (work.static_weights + work.expert_weights)
        weighed = not given.quick and cell.mode == EAGER
        used = memory.measure(raw_network(kind, given.model), x, training=True) if weighed else {}
        ratio = (3 * work.convolution + 4 * work.mixing) / (3 * static_work.convolution)
        yield {
            "cell": cell.name, "model": given.model, "mode": cell.mode, "batch": cell.batch, "size": cell.size,
            "contender": kind, "strategy": ran[kind], **timing_columns(timings[kind], timings[STATIC]),
            "macs_ratio": f"{ratio:.3f}",
            "roofline_ms": f"{limit:.4f}", "roofline_ratio": f"{limit / static_limit:.3f}",
            **roofline.columns(read), **used,
        }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Measure all cells, or those that --only names."""
    given = arguments("training", __doc__, words, model="condconv_efficientnet_b0_8e")
    run_cells(given, f"training{given.suffix}.csv", COLUMNS, QUICK if given.quick else CELLS, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
