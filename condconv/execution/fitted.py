"""What was fitted: the strategies of a CPU, fastest first, at any shape, for a forward pass or for a training step.

How many times as slow each strategy is as the fastest one was measured on many shapes, with each instruction set
(`python -m benchmarks.speed.planner_table` writes benchmarks/results/planner.csv), and fitted by Gaussian-process
regression from a few of them, the subset of regressors (Rasmussen & Williams 2006, section 8.3.1): a linear trend in
the logarithms of the shapes' sizes, and what nearby shapes deviate from it. `fitted.csv` is what the fit needs: where
these few shapes lie, and how much each of them pulls. `python -m benchmarks.speed.planner_fit` makes it.

Where nothing was fitted for an instruction set, that of another one serves, and `condconv doctor` says so. What is
measured on the machine itself is better still: `condconv.tune`.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from condconv.execution import native

TABLE = Path(__file__).with_name("fitted.csv")
INSTRUCTIONS = ("avx512", "avx2")
"""What was measured; AMX multiplies bf16 maps alone, and what else a CPU with it does is of AVX-512."""
REACH = 8.0
"""The distance over which deviations from the trend are alike: eight octaves of one size."""
TREND = 10.0
"""The variance of the trend's slopes, beside that of the deviations from it: hardly any restraint."""
SIZES = {
    "batch": 1,
    "positions": 1,
    "in_channels": 1,
    "out_channels": 1,
    "groups": 1,
    "taps": 1,
    "stride": 2,
    "experts": 0.5,
}
"""What is compared, and how much a factor of two in it counts."""


class Shape(NamedTuple):
    """What the time of a strategy depends on."""

    kind: str
    """"pointwise", "dense", "depthwise" or "grouped"."""
    channels_last: bool
    training: bool
    """Forward and backward, or forward alone."""
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


class FitKey(NamedTuple):
    """What one fit answers."""

    instructions: str
    training: bool
    kind: str
    channels_last: bool


@dataclass(frozen=True)
class Field:
    """The slowness of some strategies at any place: Σ over shapes of pull · covariance with the place."""

    names: tuple[str, ...]
    places: tuple[tuple[float, ...], ...]
    """Of the shapes."""
    pulls: tuple[tuple[float, ...], ...]
    """(shapes, names)."""

    def slowness(self, place: Sequence[float]) -> dict[str, float]:
        """Return the logarithm of each strategy's time relative to the fastest."""
        covariances = [covariance(place, other) for other in self.places]
        columns = zip(*self.pulls, strict=True)
        return {
            name: sum(pull * c for pull, c in zip(column, covariances, strict=True))
            for name, column in zip(self.names, columns, strict=True)
        }


@functools.lru_cache(maxsize=4096)
def ranking(shape: Shape, instructions: str) -> tuple[str, ...]:
    """Return the strategies by their time at a shape, fastest first, on a CPU with an instruction set.

    None for a kind that was fitted for no instruction set.
    """
    field = next(filter(None, map(_table().get, fit_keys(shape, instructions))), None)
    if field is None:
        return ()
    slowness = field.slowness(place_of([getattr(shape, size) for size in SIZES]))
    return tuple(sorted(slowness, key=slowness.__getitem__))


def fit_keys(shape: Shape, instructions: str) -> list[FitKey]:
    """What may be asked about a shape, the best first: of its own instruction set, else of another one."""
    order = sorted(INSTRUCTIONS, key=lambda one: one != instructions)
    return [FitKey(one, shape.training, shape.kind, shape.channels_last) for one in order]


def instructions_here() -> str:
    """The instruction set of `INSTRUCTIONS` that this process uses, or another name where it uses none of them."""
    used = native.instruction_set()
    if used == "none":  # The strategies of torch alone are compared then.
        used = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "none")().lower()
    return "avx512" if used == "amx" else used


def covariance(place: Sequence[float], other: Sequence[float]) -> float:
    """Return that of what is measured at two places.

    A Matérn function of order 3/2 (Rasmussen & Williams, equation 4.17) and a linear trend.
    """
    root = 3**0.5 * math.dist(place, other) / REACH
    return (1 + root) * math.exp(-root) + TREND * (1 + sum(map(float.__mul__, place, other)))


def place_of(sizes: Sequence[float]) -> tuple[float, ...]:
    """Where sizes lie: weighted logarithms, between which distances are taken."""
    return tuple(weight * math.log2(max(size, 1)) for weight, size in zip(SIZES.values(), sizes, strict=True))


@functools.cache
def _table() -> dict[FitKey, Field]:
    """The fits that are there."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: dict[FitKey, list[dict[str, str]]] = {}
    for row in rows:
        question = FitKey(
            row["instructions"], row["work"] == "training", row["kind"], row["layout"] == "channels_last"
        )
        found.setdefault(question, []).append(row)
    return {question: _read(lines) for question, lines in found.items()}


def _read(rows: Sequence[dict[str, str]]) -> Field:
    names = tuple(column.removesuffix("_pull") for column in rows[0] if column.endswith("_pull"))
    places = tuple(place_of([float(row[size]) for size in SIZES]) for row in rows)
    return Field(names, places, tuple(tuple(float(row[f"{name}_pull"]) for name in names) for row in rows))
