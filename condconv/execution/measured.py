"""What was measured: the strategies of a CPU, fastest first, at the shapes most like a given one.

`measured.csv` is made by `python -m benchmarks.speed.planner_table`: the forward pass of every strategy on many shapes,
memory layouts and numbers of threads. "Like" is the distance of the logarithms of the shapes' sizes, and the nearest
few decide together. It was measured on processors of several makers, since torch's matrix products are not as fast on
all of them; what was measured on one of this processor's maker counts, and all of it where there is none.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.machine import processor

TABLE = Path(__file__).with_name("measured.csv")
NEIGHBOURS = 8
HOPELESS = 4
"""A strategy without a time was at least so many times as slow as the fastest, or cannot serve."""
_SIZES = {"batch": 1, "positions": 1, "in_channels": 1, "out_channels": 1, "taps": 1, "stride": 2, "threads": 2}
"""What is compared, and how much a factor of two in it counts: found by leaving out one cell after the other."""


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
    stride: float
    """The geometric mean of its dimensions."""
    threads: int


def ranking(shape: Shape) -> tuple[str, ...]:
    """Return the strategies by their time at the measured shapes nearest to this one; none for a kind not measured.

    The times of each neighbour are taken relative to its fastest strategy, and averaged as logarithms.
    """
    if (table := _table().get((shape.kind, shape.channels_last))) is None:
        return ()
    names, places, slowness = table
    here = _place([float(max(getattr(shape, size), 1)) for size in _SIZES])
    nearest = (places - here).square().sum(1).topk(min(NEIGHBOURS, len(places)), largest=False).indices
    order = slowness[nearest].mean(0).argsort()
    return tuple(names[i] for i in order.tolist())


def _place(sizes: Sequence[object]) -> Tensor:
    """Where sizes (…, 7) lie: weighted logarithms, between which distances are taken."""
    return torch.tensor(sizes).log2() * torch.tensor(list(_SIZES.values()))


@functools.cache
def _table() -> dict[tuple[str, bool], tuple[tuple[str, ...], Tensor, Tensor]]:
    """(kind, channels_last) → strategies, places of the cells, logarithms of their times relative to the fastest."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if maker(row["machine"]) == maker(processor())] or rows
    names = tuple(name.removesuffix("_ms") for name in rows[0] if name.endswith("_ms"))
    cells: dict[tuple[str, bool], list[dict[str, str]]] = {}
    for row in rows:
        cells.setdefault((row["kind"], row["layout"] == "channels_last"), []).append(row)
    table = {}
    for key, found in cells.items():
        places = _place([[float(row[size]) for size in _SIZES] for row in found])
        times = torch.tensor([[float(row[f"{name}_ms"] or "inf") for name in names] for row in found])
        slowness = (times / times.amin(1, keepdim=True)).clamp(max=HOPELESS).log2()
        table[key] = names, places, slowness
    return table


def maker(processor: str) -> str:
    """Who made a processor of this name: its first word."""
    return processor.split(" ", 1)[0]
