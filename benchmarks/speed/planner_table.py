"""The planner's table: the time of every strategy on many shapes, in both memory layouts, on a CPU.

    python -m benchmarks.speed.planner_table             writes benchmarks/results/planner.csv, about half an hour
    python -m benchmarks.speed.planner_fit               fits it: writes condconv/execution/fitted.csv, in seconds

Shapes are drawn from a fixed seed: sizes as often small as large, channels that are multiples of nothing, stride 2,
2 to 16 experts, one thread. The training form (experts in their natural layout), forward alone without
gradients, and forward and backward with all of them. An empty time belongs to a strategy that cannot serve the shape,
or to one whose first calls were hopelessly slow. Each instruction set is measured in a process of its own, in which
torch's libraries are held to it too. Rows of an instruction set that this CPU does not have stay as they are.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from benchmarks.speed.instructions import answer, available, held_to, task_of
from benchmarks.speed.machine import Quiet
from benchmarks.speed.results import RESULTS, arguments, read, table
from condconv.cpu_info import processor
from condconv.execution import execute, strategies
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture

TABLE = RESULTS / "planner.csv"
STRATEGIES = [name for name in strategies if name not in ("reference", "triton")]
"""Those that run on the CPU; the reference defines the meaning, and nobody runs it to be fast."""
PLANNED = [name for name in reversed(STRATEGIES) if name not in ("mixture_of_experts", "static")]
"""Those that the planner chooses among by time; the others serve what is known to be theirs."""
COLUMNS = (
    "instructions", "work", "kind", "batch", "positions", "in_channels", "out_channels", "groups", "taps", "stride",
    "experts", "layout", *(f"{name}_ms" for name in PLANNED), "machine", "torch",
)  # fmt: skip
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WORK = ("forward", "training")
KINDS = {"pointwise": 1280, "dense": 640, "depthwise": 1280, "grouped": 128}
"""Kinds of convolutions, and the most channels that are drawn: of a group, if they are grouped."""
GROUPS = (2, 3, 4, 8)
SHAPES, LARGE_SHAPES, SEED = 80, 24, 1
"""Shapes of each kind: those of at most `MOST_MACS`, and larger ones, without which the fit would have to guess."""
EXPERTS = (2, 4, 8, 8, 16)

MOST_MACS, LARGEST_MACS = 1.5e8, 1.2e9
"""Still larger cells are left out: they cost minutes."""
HOPELESS, LOST = 4, 12
"""A strategy is not measured again when its second call takes so many times as long as the fastest's, or its first."""
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
        return f"{self.kind} {shape}"

    @property
    def macs(self) -> int:
        """Multiply-adds of the batch's convolution."""
        return self.batch * self.positions * self.kernel**2 * self.in_channels * self.out_channels // self.groups


def cells() -> Iterator[Cell]:
    """The shapes, always the same."""
    for kind, most in KINDS.items():
        draw = random.Random(f"{kind} {SEED}")
        wanted = {False: SHAPES, True: LARGE_SHAPES}
        while any(wanted.values()):
            channels = _size(draw, 4, most)
            groups = {"depthwise": channels, "grouped": draw.choice(GROUPS)}.get(kind, 1)
            cell = Cell(
                kind, _size(draw, 1, 64), _size(draw, 4, 56), _size(draw, 4, 56),
                channels if kind == "depthwise" else groups * channels,
                channels if kind == "depthwise" else groups * _size(draw, 4, most),
                1 if kind == "pointwise" else draw.choice((3, 3, 5)), draw.choice((1, 1, 2)), groups,
                draw.choice(EXPERTS),
            )  # fmt: skip
            # A depthwise convolution is as slow as a dense one with hundreds of times its multiply-adds.
            macs = cell.macs * (25 if kind == "depthwise" else 1)
            if macs <= LARGEST_MACS and wanted[macs > MOST_MACS]:
                wanted[macs > MOST_MACS] -= 1
                yield cell


def _size(draw: random.Random, low: int, high: int) -> int:
    """A whole number, as often below as above the geometric mean of the bounds."""
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))


QUICK = (Cell("pointwise", 2, 3, 3, 16, 8, 1, 2, 1, 4), Cell("depthwise", 2, 3, 4, 16, 16, 3, 1, 16, 8))


def times_ms(cell: Cell, layout: str, work: str) -> dict[str, float | None]:
    """The time of each strategy, in milliseconds."""
    x = torch.randn(cell.batch, cell.in_channels, cell.height, cell.width).contiguous(memory_format=LAYOUTS[layout])
    kernel = (cell.out_channels, cell.in_channels // cell.groups, cell.kernel, cell.kernel)
    mixture = Mixture(torch.rand(cell.batch, cell.experts), torch.randn(cell.experts, *kernel), None)
    geometry = cell.geometry
    leaves = (x, mixture.coefficients, mixture.experts)
    size = (cell.batch, cell.out_channels, *geometry.output_size(x.shape[2:], kernel[2:]))
    grad = torch.randn(size).contiguous(memory_format=LAYOUTS[layout])
    for leaf in leaves:
        leaf.requires_grad_(work == "training")

    def call(strategy: str) -> Callable[[], object]:
        def run() -> object:
            y = execute(x, mixture, geometry, strategy)
            return torch.autograd.grad(y, leaves, grad) if work == "training" else y

        return run

    found: dict[str, list[float]] = {}
    for name in PLANNED:
        if strategies[name].supports(mixture, geometry) is None:
            first = _seconds(call(name))
            lost = found and first > LOST * min(times[0] for times in found.values())
            found[name] = [first if lost else _seconds(call(name))]
    fastest = min(times[0] for times in found.values())
    worth = {name: times[0] for name, times in found.items() if times[0] < HOPELESS * fastest}
    for turn in range(TURNS):
        for name, once in worth.items():
            call(name)()
            number = max(1, min(MOST_CALLS, round(TURN_S / once)))
            found[name] = found[name] * (turn > 0) + [_seconds(call(name)) for _ in range(number)]
    return {name: 1e3 * statistics.median(found[name]) if name in found else None for name in PLANNED}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rows(cell: Cell, instructions: str) -> Iterator[dict[str, object]]:
    """Measure one shape in every layout, forward and in training."""
    torch.set_num_threads(1)
    for layout in LAYOUTS:
        for work in WORK:
            times = times_ms(cell, layout, work)
            yield {
                "instructions": instructions, "work": work, "kind": cell.kind, "batch": cell.batch,
                "positions": cell.positions, "in_channels": cell.in_channels, "out_channels": cell.out_channels,
                "groups": cell.groups if cell.kind == "grouped" else 1, "taps": cell.kernel**2, "stride": cell.stride,
                "experts": cell.experts, "layout": layout, "machine": processor(),
                "torch": torch.__version__,
                **{f"{name}_ms": "" if ms is None else f"{ms:.4g}" for name, ms in times.items()},
            }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Measure all shapes; --only and --threads have no effect."""
    given = arguments("planner_table", __doc__, words)
    Quiet(0 if given.quick else 2)
    here = available()
    started = time.perf_counter()
    chosen = [asdict(cell) for cell in (QUICK if given.quick else cells())]
    with table(given.out / TABLE.name, COLUMNS) as add:
        for line in read(TABLE):
            if line["instructions"] not in here:
                add(line)
        for instructions in here:
            task = {"instructions": instructions, "cells": chosen}
            for count, row in enumerate(held_to(instructions, "benchmarks.speed.planner_table", task)):
                add(row)
                if count % 40 == 0:
                    print(f"{time.perf_counter() - started:6.1f} s  {instructions}: {count} rows", flush=True)


if __name__ == "__main__":
    if task := task_of(sys.argv[1:]):
        for one in task["cells"]:
            for found in rows(Cell(**one), task["instructions"]):
                answer(found)
    else:
        main(sys.argv[1:])
