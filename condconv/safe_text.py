"""Names from outside in tables and reports: no cell that a spreadsheet computes, no letters that turn others round."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TURNS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def cells(row: Iterable[object]) -> list[object]:
    """A row of a CSV file, with an apostrophe before text that a spreadsheet would take for a formula."""
    return [f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell for cell in row]


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file of `cells`; names that are not UTF-8 keep their bytes."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(cells(head))
        writer.writerows(map(cells, rows))


def _is_formula(cell: str) -> bool:
    if not cell.startswith(_FORMULA):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def visible(text: str) -> str:
    """Text whose bidirectional control characters are written out, so that what is read is what is there."""
    return _TURNS.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)
