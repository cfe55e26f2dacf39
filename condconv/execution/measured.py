"""What was measured: the strategies of a CPU, fastest first, at the shape most like a given one.

`measured.csv` is made by `python -m benchmarks.speed.planner_table`: the forward pass of every strategy on a grid of
shapes, memory layouts and numbers of threads. "Like" is the distance of the logarithms of the shapes' sizes. It was
measured on processors of several makers, since torch's matrix products are not as fast on all of them; what was
measured on one of this processor's maker counts, and all of it where there is none.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from condconv.machine import processor

TABLE = Path(__file__).with_name("measured.csv")
_SIZES = ("batch", "positions", "in_channels", "out_channels", "taps", "threads")


class Shape(NamedTuple):
    """What the time of a strategy depends on."""

    kind: str
    """"pointwise", "dense" or "depthwise"."""
    channels_last: bool
    batch: int
    positions: int
    """Of the output of one example."""
    in_channels: int
    out_channels: int
    taps: int
    """Positions of the kernel."""
    threads: int


def ranking(shape: Shape) -> tuple[str, ...]:
    """Return the strategies by their time at the measured shape nearest to this one; none for a kind not measured."""
    rows = _table().get((shape.kind, shape.channels_last), ())
    if not rows:
        return ()
    here = [math.log2(max(getattr(shape, size), 1)) for size in _SIZES]
    _, names = min(rows, key=lambda row: sum((a - b) ** 2 for a, b in zip(here, row[0], strict=True)))
    return names


@functools.cache
def _table() -> dict[tuple[str, bool], list[tuple[list[float], tuple[str, ...]]]]:
    """(kind, channels_last) → (logarithms of the sizes, strategies fastest first) of each measured cell."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    table: dict[tuple[str, bool], list[tuple[list[float], tuple[str, ...]]]] = {}
    for row in [row for row in rows if maker(row["machine"]) == maker(processor())] or rows:
        sizes = [math.log2(int(row[size])) for size in _SIZES]
        table.setdefault((row["kind"], row["layout"] == "channels_last"), []).append((sizes, _by_time(row)))
    return table


def maker(processor: str) -> str:
    """Who made a processor of this name: its first word."""
    return processor.split(" ", 1)[0]


def _by_time(row: Mapping[str, str]) -> tuple[str, ...]:
    times = {name.removesuffix("_ms"): float(value) for name, value in row.items() if name.endswith("_ms") and value}
    return tuple(sorted(times, key=times.__getitem__))
