"""The picture of a study: the score against multiply-adds, and the gain over the two static networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.comparison import Estimate, Outcome
from benchmarks.accuracy.in_short import ENOUGH

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_STATIC, _CONDITIONAL, _TWIN, _WIDENED = "#555555", "#0072B2", "#D55E00", "#009E73"


def draw(outcome: Outcome, path: Path) -> None:
    """Write the picture as SVG."""
    figure = Figure(figsize=(11, 1.8 + 0.42 * max(5, len(outcome.conditional))), layout="constrained")
    left, right = figure.subplots(1, 2)
    _scores(left, outcome)
    _gains(right, outcome)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):  # the same file every time
        figure.savefig(path, metadata={"Date": None})


def _bar(value: Estimate) -> float:
    """Half the length of an interval; too few seeds have none, whose intervals would hide all others."""
    return value.half_width if value.seeds >= ENOUGH else 0.0


def draw_overhead(outcomes: Sequence[Outcome], path: Path) -> None:
    """The arithmetic, and the gains of all finished conditional arms against what they pay, as SVG."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sides = [4, 7, 8, 14, 16, 28, 32, 56]
    for experts in (2, 4, 8, 16):
        left.plot(sides, [100 * experts / side**2 for side in sides], marker="o", label=f"n = {experts}")
    left.axhline(5, color="black", linewidth=0.8, linestyle="--")
    left.set(xscale="log", yscale="log", xlabel="side of a layer's output / pixels", ylabel="overhead n / (H'W') / %")
    left.set_xticks(sides, map(str, sides))
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend(fontsize="small")
    right.axhline(0, color="black", linewidth=0.8)
    for label, colour, pick in (("over the twin", _TWIN, "twin"), ("over the widened", _WIDENED, "widened")):
        for outcome in outcomes:
            if outcome.study.score.unit != "%":
                continue
            for arm in outcome.conditional:
                other = getattr(outcome, pick)(arm)
                gain = None if other is None else outcome.difference(arm, other)
                if gain is None or gain.seeds < ENOUGH:
                    continue
                overhead = 100 * (float(outcome.any_row(arm)["ratio"]) - 1)
                right.errorbar(overhead, gain.mean, gain.half_width, fmt="o", color=colour, capsize=3, label=label)
                label = "_"
    right.set(xlabel="overhead of the network / %", ylabel="gain in top-1 / percentage points, 95 % interval")
    right.grid(alpha=0.3)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


def _scores(axes: Axes, outcome: Outcome) -> None:
    for label, colour, arms in (
        ("static", _STATIC, [arm for arm in outcome.arms if arm not in outcome.conditional]),
        ("conditional", _CONDITIONAL, outcome.conditional),
    ):
        arms = sorted(arms, key=outcome.macs)
        means = [outcome.mean(arm) for arm in arms]
        errors = [_bar(mean) for mean in means]
        costs = [outcome.macs(arm) / 1e6 for arm in arms]
        axes.errorbar(costs, [mean.mean for mean in means], errors, fmt="o", color=colour, capsize=3, label=label)
        for arm, cost, mean in zip(arms, costs, means, strict=True):
            axes.annotate(arm, (cost, mean.mean), textcoords="offset points", xytext=(5, 4), fontsize=7)
    score = outcome.study.score
    said = f"{score.study_title} / {score.unit}, mean and 95 % interval"
    axes.set(xlabel="multiply-adds of one image / 10⁶ (papers' convention)", ylabel=said)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _gains(axes: Axes, outcome: Outcome) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    arms = outcome.conditional[::-1]
    for label, colour, shift, reference in (
        ("over the static twin", _TWIN, 0.12, outcome.twin),
        ("over the widened network", _WIDENED, -0.12, outcome.widened),
    ):
        for place, arm in enumerate(arms):
            other = reference(arm)
            gain = None if other is None else outcome.difference(arm, other)
            if gain is None:
                continue
            axes.errorbar(gain.mean, place + shift, xerr=_bar(gain), fmt="o", color=colour, capsize=3, label=label)
            label = "_"
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    score = outcome.study.score
    said = f"gain in {score.study_title} / {score.differences}, 95 % interval"
    axes.set(xlabel=said)
    axes.grid(axis="x", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
