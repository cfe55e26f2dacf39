"""The plot of the documentation: time ratio against multiply-add ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.speed.results import Line
from benchmarks.speed.targets import Results, select

SERIES = (("dense layers", "#0072B2", "o"), ("depthwise layers", "#009E73", "s"), ("inference", "#D55E00", "^"))
TRAINING = ("training", "#CC79A7", "D")
TICKS = (0.5, 1, 1.5, 2, 3, 5, 10)


def draw(results: Results, path: Path) -> None:
    """Write the plot as SVG: ours filled, timm's hollow; on the line, time follows the multiply-adds."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds, relative to static", ylabel="time, relative to static")
    shown = (
        select(results.layers, group="dense"), select(results.layers, group="depthwise"),
        select(results.networks, rest="f32", mode="eager"), select(results.training, mode="eager"),
    )  # fmt: skip
    for (label, colour, marker), lines in zip((*SERIES, TRAINING), shown, strict=True):
        ours, timm = points(lines, "ours"), points(lines, "timm")
        axes.scatter(*ours, c=colour, marker=marker, s=28, label=label)
        axes.scatter(*timm, facecolors="none", edgecolors=colour, marker=marker, s=28, linewidths=0.8)
    low, high = axes.get_xlim()
    axes.plot((low, high), (low, high), color="0.6", linewidth=1, zorder=0, label="time follows multiply-adds")
    axes.axhline(1, color="0.8", linewidth=1, zorder=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(matplotlib.ticker.FixedLocator(TICKS))
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlim(low, high)
    axes.set_title("filled: condconv (strategy auto); hollow: timm", fontsize=10)
    axes.legend(fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "performance", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def points(lines: Sequence[Line], contender: str) -> tuple[list[float], list[float]]:
    """Multiply-add ratios and time ratios of a contender; of ours, those with the planner's choice and f32 experts."""
    chosen = [
        line
        for line in select(lines, contender=contender)
        if line.get("asked", "") in ("", "auto") and line.get("storage", "") in ("", "f32")
    ]
    return [float(line["macs_ratio"]) for line in chosen], [float(line["ratio"]) for line in chosen]
