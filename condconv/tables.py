"""Names from outside in tables and reports: no cell that a spreadsheet computes, no letters that turn others round."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TURNS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def cells(row: Iterable[object]) -> list[object]:
    """A row of a CSV file, with an apostrophe before text that a spreadsheet would take for a formula."""
    return [f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell for cell in row]


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
