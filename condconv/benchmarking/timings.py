"""The rows as a table, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from condconv.benchmarking.rows import COLUMNS, TimingRow
from condconv.counting.table import render
from condconv.timing import UNSTEADY

_SHOWN = {
    "mode": "mode", "batch": "batch", "threads": "threads", "contender": "contender", "strategy": "strategies",
    "median_ms": "median ms", "p95_ms": "p95 ms", "images_per_s": "images/s", "ratio": "/ static",
    "memory_mb": "peak MB",
}  # fmt: skip
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73")


def as_table(rows: Sequence[TimingRow]) -> str:
    """The rows to read; a ratio is to the static twin, in the same turns."""
    first = rows[0]
    text = f"{first['model']}, {first['work']}, images of {first['input']}, {first['device']}, torch {first['torch']}\n"
    lines = [[str(row[name]) + ("~" if row["noisy"] and name == "ratio" else "") for name in _SHOWN] for row in rows]
    text += render([list(_SHOWN.values()), *lines], left=5)
    if any(row["noisy"] for row in rows):
        text += f"\n~ a turn differed by more than {UNSTEADY:.0%} from the others, and did so again when repeated"
    return text


def as_csv(rows: Sequence[TimingRow]) -> str:
    """One line for each row, with everything it was measured on."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_picture(rows: Sequence[TimingRow]) -> bytes:
    """Time by batch, a panel for each mode and number of threads, a line for each contender; an SVG."""
    panels = list(dict.fromkeys((str(row["mode"]), str(row["threads"])) for row in rows))
    contenders = list(dict.fromkeys(str(row["contender"]) for row in rows))
    batches = sorted({int(str(row["batch"])) for row in rows})
    figure = Figure(figsize=(1 + 4 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (mode, threads) in zip(all_axes, panels, strict=True):
        for contender, colour in zip(contenders, _COLOURS, strict=False):
            mine = [r for r in rows if (r["mode"], str(r["threads"]), r["contender"]) == (mode, threads, contender)]
            points = sorted((int(str(row["batch"])), float(str(row["median_ms"]))) for row in mine)
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colour, label=contender, markersize=4)
        axes.set(xscale="log", yscale="log", xlabel="batch", title=f"{mode}, {threads} threads")
        axes.xaxis.set_major_locator(FixedLocator(batches))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel(f"{rows[0]['work']}: median time of a batch, ms")
    all_axes[0].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
