"""The planner's table: the time of every strategy on many shapes, in both memory layouts (CPU).

    python -m benchmarks.speed.planner_table     writes condconv/execution/measured.csv, about five minutes

Shapes are drawn from a fixed seed: sizes as often small as large, channels that are multiples of nothing, stride 2, one
thread to twice as many as there are cores. Forward of the training form (experts in their natural layout), without
gradients. An empty time belongs to a strategy that cannot serve the shape, or to one whose first calls were hopelessly
slow. What was measured on processors of other makers is kept.
"""

from __future__ import annotations

import math
import random
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
    "kind", "batch", "positions", "in_channels", "out_channels", "taps", "stride", "experts", "layout", "threads",
    *(f"{name}_ms" for name in STRATEGIES), "machine", "torch",
)  # fmt: skip
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
THREADS = (1, 2, 4)
KINDS = {"pointwise": 1024, "dense": 400, "depthwise": 1280}
"""Kinds of convolutions, and the most channels that are drawn."""
SHAPES, SEED = 600, 1
"""Shapes of each kind."""
EXPERTS = 8

MOST_MACS = 6e8
"""Larger cells are left out: they cost minutes, and the nearest smaller one tells as much."""
HOPELESS = 4
"""A strategy is not measured again when its second call takes that many times as long as the fastest's."""
CALLS_S, MOST_CALLS = 0.03, 9


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
    threads: int

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return self.in_channels if self.kind == "depthwise" else 1

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
            cell = Cell(
                kind, _size(draw, 1, 64), _size(draw, 4, 56), _size(draw, 4, 56), channels,
                channels if kind == "depthwise" else _size(draw, 4, most),
                1 if kind == "pointwise" else draw.choice((3, 3, 5)), draw.choice((1, 1, 2)), draw.choice(THREADS),
            )  # fmt: skip
            # A depthwise convolution is as slow as a dense one with hundreds of times its multiply-adds.
            if cell.macs * (25 if kind == "depthwise" else 1) <= MOST_MACS:
                found += 1
                yield cell


def _size(draw: random.Random, low: int, high: int) -> int:
    """A whole number, as often below as above the geometric mean of the bounds."""
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))


QUICK = (Cell("pointwise", 2, 3, 3, 16, 8, 1, 2, 1), Cell("depthwise", 2, 3, 4, 16, 16, 3, 1, 1))


def times_ms(cell: Cell, layout: str) -> dict[str, float | None]:
    """The time of each strategy, in milliseconds."""
    x = torch.randn(cell.batch, cell.in_channels, cell.height, cell.width).contiguous(memory_format=LAYOUTS[layout])
    experts = torch.randn(EXPERTS, cell.out_channels, cell.in_channels // cell.groups, cell.kernel, cell.kernel)
    mixture = Mixture(torch.rand(cell.batch, EXPERTS), experts, None)
    geometry = cell.geometry

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
    """Measure one shape in every layout."""
    torch.set_num_threads(cell.threads)
    for layout in LAYOUTS:
        times = times_ms(cell, layout)
        yield {
            "kind": cell.kind, "batch": cell.batch, "positions": cell.positions, "in_channels": cell.in_channels,
            "out_channels": cell.out_channels, "taps": cell.kernel**2, "stride": cell.stride, "experts": EXPERTS,
            "layout": layout, "threads": cell.threads, "machine": processor(), "torch": torch.__version__,
            **{f"{name}_ms": "" if ms is None else f"{ms:.4g}" for name, ms in times.items()},
        }  # fmt: skip


@torch.no_grad()
def main(words: Sequence[str] | None = None) -> None:
    """Measure all shapes; --only and --threads have no effect."""
    given = arguments("planner_table", __doc__, words)
    Quiet(0 if given.quick else 2)
    path = given.out / TABLE.name if given.quick else TABLE
    started = time.perf_counter()
    others = [line for line in read(path) if maker(line["machine"]) != maker(processor())]
    with table(path, COLUMNS) as add:
        for line in others:
            add(line)
        for cell in QUICK if given.quick else cells():
            for row in rows(cell):
                add(row)
            print(f"{time.perf_counter() - started:6.1f} s  {cell.name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
