"""The planner's table: the time of every strategy on a grid of shapes, memory layouts and numbers of threads (CPU).

    python -m benchmarks.speed.planner_table     writes condconv/execution/measured.csv, about five minutes

Forward of the training form (experts in their natural layout), without gradients. An empty time belongs to a strategy
that cannot serve the shape, or to one whose first calls were hopelessly slow. What was measured on processors of other
makers is kept.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed.machine import ROOT, Quiet
from benchmarks.speed.results import arguments, read, table
from condconv.execution import execute, strategies
from condconv.execution.measured import maker
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture
from condconv.machine import processor

TABLE = ROOT / "condconv" / "execution" / "measured.csv"
STRATEGIES = [name for name in strategies if name not in ("reference", "triton")]
"""Those that run on the CPU; the reference defines the meaning, and nobody runs it to be fast."""
COLUMNS = (
    "kind", "batch", "positions", "in_channels", "out_channels", "taps", "experts", "layout", "threads",
    *(f"{name}_ms" for name in STRATEGIES), "machine", "torch",
)  # fmt: skip
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
THREADS = (1, 2)
EXPERTS = 8

MOST_MACS = 6e8
"""Larger cells are left out: they cost minutes, and the nearest smaller one tells as much."""
HOPELESS = 4
"""A strategy is not measured again when its second call takes that many times as long as the fastest's."""
CALLS_S, MOST_CALLS = 0.03, 9


@dataclass(frozen=True)
class Cell:
    """A shape, with as many output as input channels, stride 1."""

    kind: str
    batch: int
    size: int
    channels: int
    taps: int

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return self.channels if self.kind == "depthwise" else 1

    @property
    def name(self) -> str:
        """A readable name, unique among the cells."""
        return f"{self.kind} {self.taps} taps {self.channels} @{self.size} B{self.batch}"

    @property
    def macs(self) -> int:
        """Multiply-adds of the batch's convolution."""
        return self.batch * self.size**2 * self.taps * self.channels**2 // self.groups


def cells() -> Iterator[Cell]:
    """The grid."""
    kinds = (("pointwise", 1), ("dense", 9), ("depthwise", 9), ("depthwise", 25))
    channels = (16, 48, 112, 240, 480, 960)
    for (kind, taps), batch, size, c in itertools.product(kinds, (1, 4, 16, 64), (7, 14, 28, 56), channels):
        cell = Cell(kind, batch, size, c, taps)
        # A depthwise convolution is as slow as a dense one with hundreds of times its multiply-adds.
        if cell.macs * (25 if kind == "depthwise" else 1) <= MOST_MACS:
            yield cell


QUICK = (Cell("pointwise", 2, 3, 16, 1), Cell("depthwise", 2, 3, 16, 9))


def times_ms(cell: Cell, layout: str) -> dict[str, float | None]:
    """The time of each strategy, in milliseconds."""
    x = torch.randn(cell.batch, cell.channels, cell.size, cell.size).contiguous(memory_format=LAYOUTS[layout])
    side = round(cell.taps**0.5)
    experts = torch.randn(EXPERTS, cell.channels, cell.channels // cell.groups, side, side)
    mixture = Mixture(torch.rand(cell.batch, EXPERTS), experts, None)
    geometry = ConvGeometry((1, 1), (side // 2, side // 2), (1, 1), cell.groups)

    def call(strategy: str) -> Callable[[], Tensor]:
        return lambda: execute(x, mixture, geometry, strategy)

    able = [name for name in STRATEGIES if strategies[name].supports(mixture, geometry) is None]
    found = {name: [_seconds(call(name)), _seconds(call(name))][1:] for name in able}
    fastest = min(times[0] for times in found.values())
    for name in able:
        if found[name][0] < HOPELESS * fastest:
            number = max(2, min(MOST_CALLS, round(CALLS_S / found[name][0])))
            found[name] = [_seconds(call(name)) for _ in range(number)]
    return {name: 1e3 * statistics.median(found[name]) if name in found else None for name in STRATEGIES}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rows(cell: Cell) -> Iterator[dict[str, object]]:
    """Measure one shape in every layout, with the present number of threads."""
    for layout in LAYOUTS:
        times = times_ms(cell, layout)
        yield {
            "kind": cell.kind, "batch": cell.batch, "positions": cell.size**2, "in_channels": cell.channels,
            "out_channels": cell.channels, "taps": cell.taps, "experts": EXPERTS, "layout": layout,
            "threads": torch.get_num_threads(), "machine": processor(), "torch": torch.__version__,
            **{f"{name}_ms": "" if ms is None else f"{ms:.4g}" for name, ms in times.items()},
        }  # fmt: skip


@torch.no_grad()
def main(words: Sequence[str] | None = None) -> None:
    """Measure the whole grid; --only and --threads have no effect."""
    given = arguments("planner_table", __doc__, words)
    Quiet(0 if given.quick else 2)
    path = given.out / TABLE.name if given.quick else TABLE
    started = time.perf_counter()
    others = [line for line in read(path) if maker(line["machine"]) != maker(processor())]
    with table(path, COLUMNS) as add:
        for line in others:
            add(line)
        for threads in (1,) if given.quick else THREADS:
            torch.set_num_threads(threads)
            for cell in QUICK if given.quick else cells():
                for row in rows(cell):
                    add(row)
                print(f"{time.perf_counter() - started:6.1f} s  {threads} threads  {cell.name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
