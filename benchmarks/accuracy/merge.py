"""Puts what `benchmarks.accuracy.many_runs` has written into the tables of studies, epochs and conditions beside them.

python -m benchmarks.accuracy.merge OUT demo c_starts

Rows of other settings than a study's present ones are left out; a row of the same arm and seed is replaced.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.by_condition import COLUMNS as BY_CONDITION
from benchmarks.accuracy.many_runs import COLUMNS, EPOCHS, HERE, read_table
from condconv.files import write_text
from condconv.studies.study import StudyRow, read_study, write_row


def merge(out: Path, names: Sequence[str], folder: Path = HERE) -> None:
    """Merge the finished runs of the named studies, whose files are in a folder."""
    runs = read_table(out / "runs.csv")
    beside = {name: (columns, read_table(out / f"{name}.csv")) for name, columns in
              (("epochs", EPOCHS), ("by_condition", BY_CONDITION))}  # fmt: skip
    for name in names:
        study = read_study(folder / f"{name}.yaml")
        settings = {(arm, str(seed)): study.identity(arm) for arm, seed in study.cells}
        mine = [
            row for row in runs if row["study"] == name and row["settings"] == settings.get((row["arm"], row["seed"]))
        ]
        for row in mine:
            write_row(study.results, row, COLUMNS)
        for table, (columns, found) in beside.items():
            rows = [{**other, "study": name, "arm": row["arm"]} for row in mine for other in _of_run(row, runs, found)]
            if rows:
                _replace(study.results.with_name(f"{name}_{table}.csv"), columns, rows)


def _of_run(row: StudyRow, runs: Sequence[StudyRow], found: Sequence[StudyRow]) -> list[StudyRow]:
    """The rows of a run, under the name of the study and arm that trained it."""
    same = {
        (other["study"], other["arm"], other["seed"])
        for other in runs
        if all(other[key] == row[key] for key in ("data", "settings", "seed"))
    }
    return [other for other in found if (other["study"], other["arm"], other["seed"]) in same]


def _replace(path: Path, columns: Sequence[str], rows: Sequence[StudyRow]) -> None:
    """Add rows to a table, in place of those of the same runs."""
    runs = {(row["arm"], row["seed"]) for row in rows}
    kept = [row for row in read_table(path) if (row["arm"], row["seed"]) not in runs]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_text(path, buffer.getvalue())


def main() -> None:
    """Merge the studies that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("studies", nargs="+", metavar="STUDY")
    given = parser.parse_args()
    merge(given.out, given.studies)


if __name__ == "__main__":
    main()
