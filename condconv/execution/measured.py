"""What was measured: the strategies of a CPU, fastest first, at shapes that were measured and between them.

`measured.csv` is made by `python -m benchmarks.speed.planner_table`: the forward pass of every strategy on many shapes,
memory layouts and numbers of threads. How slow each strategy is beside the fastest is interpolated between them by
Gaussian-process regression (Rasmussen & Williams 2006, chapter 2): a linear trend in the logarithms of the shapes'
sizes, and what nearby shapes deviate from it. It was measured on processors of several makers, since torch's matrix
products are not as fast on all of them; what was measured on one of this processor's maker counts, and all of it where
there is none.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.machine import processor

TABLE = Path(__file__).with_name("measured.csv")
REACH = 8.0
"""The distance over which deviations from the trend are alike: eight octaves of one size."""
NOISE = 0.1
"""The variance of what a measurement is off, beside that of the deviations from the trend."""
TREND = 10.0
"""The variance of the trend's slopes, beside that of the deviations from it: hardly any restraint."""
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


@dataclass(frozen=True)
class Field:
    """The slowness of some strategies at any place: trend · (1, place) + Σ over cells of pull · covariance."""

    names: tuple[str, ...]
    places: list[list[float]]
    """Of the cells."""
    pulls: list[list[float]]
    """(names, cells)."""
    trend: list[list[float]]
    """(names, 1 + sizes)."""

    def slowness(self, place: Sequence[float]) -> dict[str, float]:
        """Return the logarithm of each strategy's time relative to the fastest."""
        covariances = [_matern(math.dist(place, other) / REACH) for other in self.places]
        return {
            name: trend[0]
            + sum(slope * size for slope, size in zip(trend[1:], place, strict=True))
            + sum(pull * covariance for pull, covariance in zip(pulls, covariances, strict=True))
            for name, pulls, trend in zip(self.names, self.pulls, self.trend, strict=True)
        }


@functools.lru_cache(maxsize=4096)
def ranking(shape: Shape) -> tuple[str, ...]:
    """Return the strategies by their time at a shape, fastest first; none for a kind not measured."""
    field = _field(shape.kind, shape.channels_last)
    if field is None:
        return ()
    slowness = field.slowness(_place([max(getattr(shape, size), 1) for size in _SIZES]))
    return tuple(sorted(slowness, key=slowness.__getitem__))


@functools.cache
def _field(kind: str, channels_last: bool) -> Field | None:
    """The field of a kind, fitted in a thread of its own: in this one tensors may be fake, while torch is traced."""
    names, cells = _table().get((kind, channels_last), ((), []))
    if not cells:
        return None
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fit, names, cells).result()


def fit(names: tuple[str, ...], cells: Sequence[Cell]) -> Field:
    """Fit the slowness of strategies to cells (Rasmussen & Williams, equations 2.25 and 2.42)."""
    places, slowness = tensors(cells)
    pulls = torch.linalg.solve(covariance(places), slowness)
    sized = torch.cat([torch.ones_like(places[:, :1]), places], 1)
    return Field(names, places.tolist(), pulls.T.tolist(), (TREND * pulls.T @ sized).tolist())


def tensors(cells: Sequence[Cell]) -> tuple[Tensor, Tensor]:
    """The places (cells, sizes) and the slowness (cells, names) of cells, f64."""
    places = torch.tensor([cell.place for cell in cells], dtype=torch.float64, device="cpu")
    return places, torch.tensor([cell.slowness for cell in cells], dtype=torch.float64, device="cpu")


def covariance(places: Tensor) -> Tensor:
    """Return that of what is measured at places (cells, sizes): → (cells, cells)."""
    distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") / REACH
    root = 3**0.5 * distance
    trend = TREND * (1 + places @ places.T)
    return (1 + root) * torch.exp(-root) + trend + NOISE * torch.eye(len(places), dtype=places.dtype)


def _matern(distance: float) -> float:
    """The covariance of two deviations: a Matérn function of order 3/2 (Rasmussen & Williams, equation 4.17)."""
    root = 3**0.5 * distance
    return (1 + root) * math.exp(-root)


def _place(sizes: Sequence[float]) -> tuple[float, ...]:
    """Where sizes lie: weighted logarithms, between which distances are taken."""
    return tuple(weight * math.log2(size) for weight, size in zip(_SIZES.values(), sizes, strict=True))


@functools.cache
def _table() -> Cells:
    return cells_of(processor())


def cells_of(processor: str) -> Cells:
    """Read what was measured on processors of this one's maker, or all where there is nothing."""
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
