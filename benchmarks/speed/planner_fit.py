"""Fits what the planner knows of CPUs to the planner's table, and checks how well it chooses.

    python -m benchmarks.speed.planner_fit

writes condconv/execution/fitted.csv and benchmarks/results/planner_check.csv.

The method is the subset of regressors (Rasmussen & Williams 2006, section 8.3.1): of the shapes that were measured for
a question (instruction set, forward or training, kind, layout), those are kept that lie farthest from one another, and
all of them say how much each one pulls. It is checked on shapes that the fit has not seen: an eighth of them is left
out in turn.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.speed.planner_table import TABLE
from benchmarks.speed.results import SLOWEST, Line, arguments, read, table
from condconv.execution.fitted import REACH, SIZES, TREND, Field, FitKey, place_of
from condconv.execution.fitted import TABLE as FITTED
from condconv.timing import quantile

NOISE = 0.1
"""The variance of what a measurement is off, beside that of the deviations from the trend."""
HOPELESS = 4
"""A strategy without a time was at least so many times as slow as the fastest, or cannot serve."""
KEPT = 32
"""Shapes of a question that the fit keeps."""
FOLDS = 8
QUESTION = ("instructions", "work", "kind", "layout")


class Cell(NamedTuple):
    """A measured shape: its sizes, where it lies, and the logarithm of each strategy's time relative to the fastest."""

    sizes: dict[str, float]
    place: tuple[float, ...]
    slowness: tuple[float, ...]


def cells_of(lines: Sequence[Line], names: Sequence[str]) -> dict[FitKey, list[Cell]]:
    """What was measured, by question."""
    found: dict[FitKey, list[Cell]] = {}
    for line in lines:
        times = [float(line[f"{name}_ms"] or "inf") for name in names]
        slowness = tuple(math.log2(min(time / min(times), HOPELESS)) for time in times)
        sizes = {size: float(line[size]) for size in SIZES}
        question = FitKey(
            line["instructions"], line["work"] == "training", line["kind"], line["layout"] == "channels_last"
        )
        found.setdefault(question, []).append(Cell(sizes, place_of(list(sizes.values())), slowness))
    return found


def fit(names: Sequence[str], cells: Sequence[Cell], kept: int = KEPT) -> tuple[list[Cell], Field]:
    """Return the shapes that are kept, and the fit of all of them (Rasmussen & Williams, equation 8.14)."""
    chosen = spread(cells, kept)
    far, slowness = places(cells), torch.tensor([cell.slowness for cell in cells], dtype=torch.float64)
    near = places(chosen)
    cross = covariance(far, near)
    pulls = torch.linalg.solve(cross.T @ cross + NOISE * covariance(near, near), cross.T @ slowness)
    return chosen, Field(tuple(names), tuple(cell.place for cell in chosen), tuple(map(tuple, pulls.tolist())))


def spread(cells: Sequence[Cell], count: int) -> list[Cell]:
    """Return cells that lie far from one another: each one farthest from those before it."""
    at = places(cells)
    chosen = [0]
    nearest = torch.cdist(at[:1], at)[0]
    while len(chosen) < min(count, len(cells)) and float(nearest.max()) > 0:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, torch.cdist(at[chosen[-1] :][:1], at)[0])
    return [cells[i] for i in chosen]


def places(cells: Sequence[Cell]) -> Tensor:
    """Where cells lie, (cells, sizes), f64."""
    return torch.tensor([cell.place for cell in cells], dtype=torch.float64)


def covariance(a: Tensor, b: Tensor) -> Tensor:
    """`condconv.execution.fitted.covariance` of all pairs of places (…, sizes)."""
    root = 3**0.5 * torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / REACH
    return (1 + root) * torch.exp(-root) + TREND * (1 + a @ b.T)


def slowness_of_choices(names: Sequence[str], cells: Sequence[Cell]) -> list[float]:
    """The time of the strategy that the others choose for each cell that is left out, relative to the fastest."""
    found = []
    for fold in range(FOLDS):
        _, field = fit(names, [cell for i, cell in enumerate(cells) if i % FOLDS != fold])
        for cell in cells[fold::FOLDS]:
            expected = field.slowness(cell.place)
            found.append(2 ** cell.slowness[names.index(min(expected, key=expected.__getitem__))])
    return found


def fitted_rows(names: Sequence[str], measured: dict[FitKey, list[Cell]]) -> Iterator[dict[str, object]]:
    """The lines of the fit."""
    for question, cells in measured.items():
        chosen, field = fit(names, cells)
        for cell, pulls in zip(chosen, field.pulls, strict=True):
            yield {
                **columns(question), **{size: f"{value:g}" for size, value in cell.sizes.items()},
                **{f"{name}_pull": f"{pull:.8g}" for name, pull in zip(names, pulls, strict=True)},
            }  # fmt: skip


def check(names: Sequence[str], measured: dict[FitKey, list[Cell]]) -> Iterator[dict[str, object]]:
    """How the choice compares with the fastest strategy; `exceed` counts those above `SLOWEST`, `mean` is geometric."""
    for question, cells in measured.items():
        slow = slowness_of_choices(names, cells)
        yield {
            **columns(question), "cells": len(cells), "exceed": sum(ratio > SLOWEST for ratio in slow),
            "mean": f"{geometric_mean(slow):.3f}", "p95": f"{quantile(slow, 0.95):.3f}", "worst": f"{max(slow):.2f}",
        }  # fmt: skip


def columns(question: FitKey) -> dict[str, object]:
    """The question as columns of a table."""
    work, layout = ("forward", "training")[question.training], ("contiguous", "channels_last")[question.channels_last]
    return dict(zip(QUESTION, (question.instructions, work, question.kind, layout), strict=True))


def main(words: Sequence[str] | None = None) -> None:
    """Fit and check; --threads and --only have no effect."""
    given = arguments("planner_fit", __doc__, words)
    lines = read(given.out / TABLE.name if given.quick else TABLE)
    names = [column.removesuffix("_ms") for column in lines[0] if column.endswith("_ms")]
    measured = cells_of(lines, names)
    path: Path = given.out / FITTED.name if given.quick else FITTED
    with table(path, (*QUESTION, *SIZES, *(f"{name}_pull" for name in names))) as add:
        for row in fitted_rows(names, measured):
            add(row)
    with table(given.out / "planner_check.csv", (*QUESTION, "cells", "exceed", "mean", "p95", "worst")) as add:
        for row in check(names, measured) if not given.quick else ():
            add(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(f"wrote {path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
