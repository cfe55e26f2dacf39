"""The planner's table: the time of every strategy on many shapes, in both memory layouts (CPU).

    python -m benchmarks.speed.planner_table             writes condconv/execution/measured.csv, about ten minutes
    python -m benchmarks.speed.planner_table --check     writes benchmarks/results/planner_check.csv, in seconds

Shapes are drawn from a fixed seed: sizes as often small as large, channels that are multiples of nothing, stride 2,
2 to 16 experts, one thread to twice as many as there are cores. Forward of the training form (experts in their natural
layout), without gradients. An empty time belongs to a strategy that cannot serve the shape, or to one whose first calls
were hopelessly slow. What was measured on processors of other makers is kept. Whether such a table tells of shapes that
are not in it is checked by leaving out one cell after the other, and choosing its strategy by the others.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.machine import ROOT, Quiet
from benchmarks.speed.results import SLOWEST, arguments, read, table
from condconv.execution import execute, measured, strategies
from condconv.execution.measured import maker
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture
from condconv.machine import processor
from condconv.timing import quantile

TABLE = ROOT / "condconv" / "execution" / "measured.csv"
STRATEGIES = [name for name in strategies if name not in ("reference", "triton")]
"""Those that run on the CPU; the reference defines the meaning, and nobody runs it to be fast."""
COLUMNS = (
    "kind", "batch", "positions", "in_channels", "out_channels", "groups", "taps", "stride", "experts", "layout",
    "threads", *(f"{name}_ms" for name in STRATEGIES), "machine", "torch",
)  # fmt: skip
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
THREADS = (1, 2, 4)
KINDS = {"pointwise": 1024, "dense": 400, "depthwise": 1280, "grouped": 128}
"""Kinds of convolutions, and the most channels that are drawn: of a group, if they are grouped."""
GROUPS = (2, 3, 4, 8)
SHAPES, SEED = 450, 1
"""Shapes of each kind."""
EXPERTS = (2, 4, 8, 16)

MOST_MACS = 6e8
"""Larger cells are left out: they cost minutes, and the nearest smaller one tells as much."""
HOPELESS = 4
"""A strategy is not measured again when its second call takes that many times as long as the fastest's."""
TURNS = 3
"""Strategies take turns: in each one, a call that fills the caches and as many as fit into `TURN_S` seconds."""
TURN_S, MOST_CALLS = 0.01, 5


@dataclass(frozen=True)
class Cell:
    """A shape."""

    kind: str
    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    experts: int
    threads: int

    @property
    def geometry(self) -> ConvGeometry:
        """All of the convolution but its channels and kernel."""
        return ConvGeometry((self.stride,) * 2, (self.kernel // 2,) * 2, (1, 1), self.groups)

    @property
    def positions(self) -> int:
        """Of the output."""
        return math.prod(self.geometry.output_size((self.height, self.width), (self.kernel,) * 2))

    @property
    def name(self) -> str:
        """A readable name."""
        channels = f"{self.in_channels}-{self.out_channels}"
        shape = f"{self.kernel}x{self.kernel}/{self.stride} {channels} @{self.height}x{self.width} B{self.batch}"
        return f"{self.kind} {shape} {self.threads} threads"

    @property
    def macs(self) -> int:
        """Multiply-adds of the batch's convolution."""
        return self.batch * self.positions * self.kernel**2 * self.in_channels * self.out_channels // self.groups


def cells() -> Iterator[Cell]:
    """The shapes, always the same."""
    draw = random.Random(SEED)
    for kind, most in KINDS.items():
        found = 0
        while found < SHAPES:
            channels = _size(draw, 4, most)
            groups = {"depthwise": channels, "grouped": draw.choice(GROUPS)}.get(kind, 1)
            cell = Cell(
                kind, _size(draw, 1, 64), _size(draw, 4, 56), _size(draw, 4, 56),
                channels if kind == "depthwise" else groups * channels,
                channels if kind == "depthwise" else groups * _size(draw, 4, most),
                1 if kind == "pointwise" else draw.choice((3, 3, 5)), draw.choice((1, 1, 2)), groups,
                draw.choice(EXPERTS), draw.choice(THREADS),
            )  # fmt: skip
            # A depthwise convolution is as slow as a dense one with hundreds of times its multiply-adds.
            if cell.macs * (25 if kind == "depthwise" else 1) <= MOST_MACS:
                found += 1
                yield cell


def _size(draw: random.Random, low: int, high: int) -> int:
    """A whole number, as often below as above the geometric mean of the bounds."""
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))


QUICK = (Cell("pointwise", 2, 3, 3, 16, 8, 1, 2, 1, 4, 1), Cell("depthwise", 2, 3, 4, 16, 16, 3, 1, 16, 8, 1))


def times_ms(cell: Cell, layout: str) -> dict[str, float | None]:
    """The time of each strategy, in milliseconds."""
    x = torch.randn(cell.batch, cell.in_channels, cell.height, cell.width).contiguous(memory_format=LAYOUTS[layout])
    kernel = (cell.out_channels, cell.in_channels // cell.groups, cell.kernel, cell.kernel)
    mixture = Mixture(torch.rand(cell.batch, cell.experts), torch.randn(cell.experts, *kernel), None)
    geometry = cell.geometry

    def call(strategy: str) -> Callable[[], Tensor]:
        return lambda: execute(x, mixture, geometry, strategy)

    able = [name for name in STRATEGIES if strategies[name].supports(mixture, geometry) is None]
    found = {name: [_seconds(call(name)), _seconds(call(name))][1:] for name in able}
    fastest = min(times[0] for times in found.values())
    worth = {name: times[0] for name, times in found.items() if times[0] < HOPELESS * fastest}
    for turn in range(TURNS):
        for name, once in worth.items():
            call(name)()
            number = max(1, min(MOST_CALLS, round(TURN_S / once)))
            found[name] = found[name] * (turn > 0) + [_seconds(call(name)) for _ in range(number)]
    return {name: 1e3 * statistics.median(found[name]) if name in found else None for name in STRATEGIES}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rows(cell: Cell) -> Iterator[dict[str, object]]:
    """Measure one shape in every layout."""
    torch.set_num_threads(cell.threads)
    for layout in LAYOUTS:
        times = times_ms(cell, layout)
        yield {
            "kind": cell.kind, "batch": cell.batch, "positions": cell.positions, "in_channels": cell.in_channels,
            "out_channels": cell.out_channels, "groups": cell.groups if cell.kind == "grouped" else 1,
            "taps": cell.kernel**2, "stride": cell.stride, "experts": cell.experts, "layout": layout,
            "threads": cell.threads, "machine": processor(), "torch": torch.__version__,
            **{f"{name}_ms": "" if ms is None else f"{ms:.4g}" for name, ms in times.items()},
        }  # fmt: skip


CHECKED = ("maker", "kind", "layout", "cells", "exceed", "mean", "p90", "worst")


def check() -> Iterator[dict[str, object]]:
    """How many times as slow as the fastest strategy the choice is for cells that are left out, by what is measured.

    `exceed` counts those of more than `SLOWEST`, `mean` is geometric; the table's bound is that of `measured.HOPELESS`.
    """
    for who in dict.fromkeys(maker(line["machine"]) for line in read(TABLE)):
        for (kind, last), (_, cells) in measured.cells_of(who).items():
            slow = slowness_of_choices(cells)
            yield {
                "maker": who, "kind": kind, "layout": "channels_last" if last else "contiguous", "cells": len(cells),
                "exceed": sum(ratio > SLOWEST for ratio in slow), "mean": f"{statistics.geometric_mean(slow):.3f}",
                "p90": f"{quantile(slow, 0.9):.3f}", "worst": f"{max(slow):.2f}",
            }  # fmt: skip


def slowness_of_choices(cells: Sequence[measured.Cell]) -> list[float]:
    """The time of the strategy that the other cells choose for each one, relative to the fastest.

    Leaving a cell out needs no fit of its own (Rasmussen & Williams 2006, equation 5.12).
    """
    places, slowness = measured.tensors(cells)
    inverse = torch.linalg.inv(measured.covariance(places))
    expected = slowness - inverse @ slowness / inverse.diagonal()[:, None]
    return [2 ** cell.slowness[chosen] for cell, chosen in zip(cells, expected.argmin(1).tolist(), strict=True)]


@torch.no_grad()
def main(words: Sequence[str] | None = None) -> None:
    """Measure all shapes, then check the table; --only and --threads have no effect."""
    given = arguments("planner_table", __doc__, words, check="check the table that is there, without measuring")
    if not given.check:
        measure(given.out / TABLE.name if given.quick else TABLE, given.quick)
    if given.quick and not given.check:
        return
    with table(given.out / "planner_check.csv", CHECKED) as add:
        for row in check():
            add(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def measure(path: Path, quick: bool) -> None:
    """Write the table."""
    Quiet(0 if quick else 2)
    started = time.perf_counter()
    others = [line for line in read(path) if maker(line["machine"]) != maker(processor())]
    with table(path, COLUMNS) as add:
        for line in others:
            add({column: line.get(column, "") for column in COLUMNS})
        for cell in QUICK if quick else cells():
            for row in rows(cell):
                add(row)
            print(f"{time.perf_counter() - started:6.1f} s  {cell.name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
