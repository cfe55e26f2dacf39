"""What all scripts share: their arguments, and a CSV file that stands under its name only when it is complete."""

from __future__ import annotations

import argparse
import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from benchmarks.speed.machine import ROOT, Quiet, description
from benchmarks.speed.roofline import Roofline
from condconv.timing import Timing

RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "build" / "bench"
SLOWEST = 1.15
"""How much slower than the best strategy the planner's choice may be."""

Row = Mapping[str, object]
Line = dict[str, str]


class Named(Protocol):
    """What is measured in one go."""

    @property
    def name(self) -> str:
        """A readable name, unique in its script."""


Cell = TypeVar("Cell", bound=Named)


def arguments(
    module: str, about: str | None, words: Sequence[str] | None, model: str | None = None, check: str | None = None
) -> argparse.Namespace:
    """Parse the options of a script and set the number of threads; `model` is the default of --model, if it has one.

    `check` says what --check does, if there is one.
    """
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.speed.{module}", description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--only", default="", metavar="REGEX", help="measure these cells anew and keep the other rows")
    parser.add_argument("--quick", action="store_true", help="a tiny run that shows that it works; its times are noise")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: benchmarks/results; build/bench if quick")
    if model is not None:
        parser.add_argument("--model", default=model, help=f"a network of `condconv models` (default: {model})")
    if check is not None:
        parser.add_argument("--check", action="store_true", help=check)
    given = parser.parse_args(words)
    # The committed results, and the page, are of the default network.
    given.suffix = "" if model is None or given.model == model else f"-{given.model}"
    given.out = given.out or (QUICK_RESULTS if given.quick else RESULTS)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return given


def wanted(given: argparse.Namespace, cells: Iterable[Cell]) -> Iterator[Cell]:
    """The cells that --only names, all without it."""
    return (cell for cell in cells if re.search(given.only, cell.name))


def read(path: Path) -> list[Line]:
    """The lines of a CSV file with a header; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@contextmanager
def table(path: Path, columns: Sequence[str], only: str = "") -> Iterator[Callable[[Row], None]]:
    """A CSV file to add rows to; each is on the disk at once, under a temporary name until all is done.

    With `only`, rows of the present file whose column "cell" does not match stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [line for line in read(path) if only and not re.search(only, line["cell"])]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")

            def add(row: Row) -> None:
                writer.writerow(row)
                file.flush()

            writer.writeheader()
            for line in kept:
                add({column: line.get(column, "") for column in columns})
            yield add
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"wrote {path}")


TIMING = ("median_ms", "p10_ms", "p90_ms", "calls", "ratio", "ratio_p10", "ratio_p90")
LIMITS = ("macs_ratio", "roofline_ratio", "roofline_ms", "peak_gflop_s", "bandwidth_gb_s")
MACHINE = (
    "machine", "cores", "threads", "torch", "timm", "date", "commit", "load", "busy_percent", "steal_percent"
)  # fmt: skip


def timing_columns(timing: Timing, static: Timing) -> dict[str, object]:
    """Time, and its ratio to the static twin, as they stand in the rows."""
    ms, ratio = timing.ms, timing.over(static)
    return {
        **{name: f"{value:.4f}" for name, value in zip(TIMING, (ms.median, ms.p10, ms.p90), strict=False)},
        "calls": timing.calls,
        "ratio": f"{ratio.median:.3f}",
        "ratio_p10": f"{ratio.p10:.3f}",
        "ratio_p90": f"{ratio.p90:.3f}",
    }


def run_cells(
    given: argparse.Namespace,
    file: str,
    columns: Sequence[str],
    cells: Iterable[Cell],
    rows: Callable[[Cell, argparse.Namespace, Roofline], Iterable[Row]],
) -> None:
    """Measure the cells that --only names, all without it, and write their rows."""
    quiet = Quiet(0 if given.quick else 2)
    roofline = Roofline(0 if given.quick else 0.5)
    with table(given.out / file, columns, given.only) as add:
        for cell in wanted(given, cells):
            for row in rows(cell, given, roofline):
                add({**row, **description(), **quiet.columns()})
                words = (row.get(name) for name in ("contender", "storage", "rest", "asked", "strategy"))
                label = " ".join(str(word) for word in words if word)
                print(f"{cell.name:<44} {label:<36} {row['median_ms']:>11} ms  × {row['ratio']}", flush=True)
