"""What was measured: the strategies of a CPU, fastest first, at the shapes most like a given one.

`measured.csv` is made by `python -m benchmarks.speed.planner_table`: the forward pass of every strategy on many shapes,
memory layouts and numbers of threads. "Like" is the distance of the logarithms of the shapes' sizes, and the nearest
few decide together, the nearer ones with more weight. It was measured on processors of several makers, since torch's
matrix products are not as fast on all of them; what was measured on one of this processor's maker counts, and all of it
where there is none.
"""

from __future__ import annotations

import csv
import functools
import heapq
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from condconv.machine import processor

TABLE = Path(__file__).with_name("measured.csv")
NEIGHBOURS = 12
NEAREST = 0.5
"""A distance below which nothing is nearer: half an octave of one size."""
HOPELESS = 4
"""A strategy without a time was at least so many times as slow as the fastest, or cannot serve."""
_SIZES = {
    "batch": 1,
    "positions": 1,
    "in_channels": 1,
    "out_channels": 1,
    "groups": 1,
    "taps": 1,
    "stride": 2,
    "experts": 0.5,
    "threads": 2,
}
"""What is compared, and how much a factor of two in it counts.

How often they choose wrongly, one cell after the other left out: `python -m benchmarks.speed.planner_table --check`.
"""


class Shape(NamedTuple):
    """What the time of a strategy depends on."""

    kind: str
    """"pointwise", "dense", "depthwise" or "grouped"."""
    channels_last: bool
    batch: int
    positions: int
    """Of the output of one example."""
    in_channels: int
    out_channels: int
    groups: int
    """1 for a depthwise convolution: the channels tell how many it has."""
    taps: int
    """Positions of the kernel."""
    stride: float
    """The geometric mean of its dimensions."""
    experts: int
    """1 where the kernels are mixed already."""
    threads: int


class Cell(NamedTuple):
    """A measured shape: where it lies, and the logarithm of each strategy's time relative to the fastest."""

    place: tuple[float, ...]
    slowness: tuple[float, ...]


Cells = dict[tuple[str, bool], tuple[tuple[str, ...], list[Cell]]]
"""(kind, channels_last) → names of strategies, and the cells."""


def ranking(shape: Shape) -> tuple[str, ...]:
    """Return the strategies by their time at the measured shapes nearest to this one; none for a kind not measured."""
    names, cells = _table().get((shape.kind, shape.channels_last), ((), []))
    return vote(names, cells, _place([max(getattr(shape, size), 1) for size in _SIZES]))


def vote(names: Sequence[str], cells: Iterable[Cell], place: Sequence[float]) -> tuple[str, ...]:
    """Return the names by the mean logarithm of their slowness in the nearest cells, each weighed by its nearness."""
    nearest = heapq.nsmallest(NEIGHBOURS, ((math.dist(cell.place, place), cell.slowness) for cell in cells))
    weighed = [[slow / max(distance, NEAREST) for slow in slowness] for distance, slowness in nearest]
    return tuple(name for _, name in sorted(zip(map(sum, zip(*weighed, strict=True)), names, strict=False)))


def _place(sizes: Sequence[float]) -> tuple[float, ...]:
    """Where sizes lie: weighted logarithms, between which distances are taken."""
    return tuple(weight * math.log2(size) for weight, size in zip(_SIZES.values(), sizes, strict=True))


@functools.cache
def _table() -> Cells:
    return cells_of(processor())


def cells_of(processor: str) -> Cells:
    """Read what was measured on processors of this one's maker, or all where there is nothing.

    It holds no tensors: shapes may be asked for while torch is traced.
    """
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if maker(row["machine"]) == maker(processor)] or rows
    names = tuple(name.removesuffix("_ms") for name in rows[0] if name.endswith("_ms"))
    table: Cells = {}
    for row in rows:
        times = [float(row[f"{name}_ms"] or "inf") for name in names]
        slowness = tuple(math.log2(min(time / min(times), HOPELESS)) for time in times)
        _, cells = table.setdefault((row["kind"], row["layout"] == "channels_last"), (names, []))
        cells.append(Cell(_place([float(row[size] or 1) for size in _SIZES]), slowness))
    return table


def maker(processor: str) -> str:
    """Who made a processor of this name: its first word."""
    return processor.split(" ", 1)[0]
