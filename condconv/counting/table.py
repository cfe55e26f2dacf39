"""The result of a count: rows, sums, and their forms as text, CSV and JSON. The convention stands in every header."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass

from condconv.counting.rules import Macs


@dataclass(frozen=True)
class Row:
    """One layer, router or squeeze-excite module; multiply-adds of all its calls together."""

    name: str
    kind: str
    convolution: int
    mixing: int
    routing: int
    pooling: int
    params: int
    """Elements of the parameters that no earlier row has counted, children with rows of their own left out."""
    calls: int
    strategy: str = ""
    """Of a conditional layer, where the convention depends on it."""

    @property
    def macs(self) -> int:
        """Multiply-adds of the row."""
        return self.convolution + self.mixing + self.routing + self.pooling


@dataclass(frozen=True)
class Count:
    """Multiply-adds (one multiply and one add = 1) and parameters of a model, for the inputs it was counted on."""

    convention: str
    inputs: str
    params: int
    rows: tuple[Row, ...]
    uncounted: tuple[str, ...] = ()
    """Modules that have matrices among their parameters, were called, and are outside of the convention."""

    @property
    def macs(self) -> int:
        """Multiply-adds of the model."""
        return sum(row.macs for row in self.rows)

    @property
    def by_purpose(self) -> Macs:
        """Multiply-adds of the model by purpose."""
        return Macs(*(sum(getattr(row, field) for row in self.rows) for field in Macs._fields))

    def __str__(self) -> str:
        head = ["layer", "kind", *Macs._fields, "multiply-adds", "parameters", "calls"]
        body = [
            [row.name or "(model)", " ".join(filter(None, (row.kind, row.strategy)))]
            + [f"{value:,}" for value in (*self._macs(row), row.macs, row.params, row.calls)]
            for row in self.rows
        ]
        total = ["total", "", *(f"{value:,}" for value in (*self.by_purpose, self.macs, self.params)), ""]
        text = f"multiply-adds by the convention {self.convention!r}, input {self.inputs}\n"
        text += render([head, *body, total], left=2)
        if self.uncounted:
            text += f"\nnot in this convention, though they hold matrices: {', '.join(self.uncounted)}"
        return text

    def to_csv(self) -> str:
        """Return one line for each row; the column names carry convention and unit."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        columns = [f"{self.convention}_{field}_macs" for field in Macs._fields]
        writer.writerow(["layer", "kind", "strategy", "calls", "params", *columns, f"{self.convention}_macs"])
        for row in self.rows:
            writer.writerow([row.name, row.kind, row.strategy, row.calls, row.params, *self._macs(row), row.macs])
        return out.getvalue()

    def to_json(self) -> str:
        """Return the count as one JSON object."""
        rows = [{**asdict(row), "macs": row.macs} for row in self.rows]
        head = {"convention": self.convention, "unit": "multiply-adds", "inputs": self.inputs}
        sums = {"macs": self.macs, "params": self.params, "uncounted": self.uncounted}
        return json.dumps({**head, **sums, "rows": rows}, indent=2)

    @staticmethod
    def _macs(row: Row) -> tuple[int, ...]:
        return tuple(getattr(row, field) for field in Macs._fields)


def render(lines: list[list[str]], left: int) -> str:
    """Return lines of cells as aligned text; the first `left` columns are words, the others numbers."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    aligned = (
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return "\n".join(aligned)
