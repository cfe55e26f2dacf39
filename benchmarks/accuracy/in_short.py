"""What the studies say in short: the table that begins docs/accuracy.md and is in docs/when.md, and README's."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.accuracy.comparison import Estimate, Outcome, estimate
from benchmarks.accuracy.markdown import gain, shown, table

LEADING = (
    ("demo", "condconv8", "eight experts in `cifar_resnet8`, Fashion-MNIST under unknown conditions: `make demo`"),
    ("c_starts", "experts_16", "the same with sixteen experts, a router for each layer: twice the overhead"),
    ("f_shapes", "condconv_deep", "eight experts, deeper: `cifar_resnet14`"),
    ("f_shapes", "condconv_long", "eight experts, three times as long: 12 epochs"),
    ("f_shapes", "condconv_narrow", "eight experts, half as wide"),
    ("f_shapes", "condconv_wide", "eight experts, twice as wide"),
    ("a_fashion", "condconv8", "eight experts in `cifar_resnet8`, Fashion-MNIST as it is"),
    ("a_cifar10", "condconv8", "eight experts in `cifar_resnet8`, CIFAR-10-JPEG"),
)
"""Study, arm, and what is trained."""
ENOUGH = 3
"""Seeds, fewer of which say nothing."""
STRONGER = "noisy:1.5"
"""The condition that README names: no training image was under it."""
TIMES = Path(__file__).resolve().parent / "results" / "demo_times.csv"


def leading(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Experts in each setting: their gain over both static networks, or that there is none."""
    found = {outcome.study.name: outcome for outcome in outcomes}
    rows = [
        _leading_cells(found[study], arm, what)
        for study, arm, what in LEADING
        if study in found and arm in found[study].arms
    ]
    head = ["conditional network", "overhead", "gain over the twin", "over the widened network", "above both", "shown"]
    if rows:
        yield from table(head, rows)


def _leading_cells(outcome: Outcome, arm: str, what: str) -> list[str]:
    twin, widened = outcome.twin(arm), outcome.widened(arm)
    differences = [None if other is None else outcome.difference(arm, other) for other in (twin, widened)]
    overhead = float(outcome.any_row(arm)["ratio"]) - 1
    above, seeds = outcome.above_both(arm)
    return [
        what, f"{overhead:.1%}", gain(outcome, arm, twin), gain(outcome, arm, widened), f"{above} of {seeds} seeds",
        _verdict(differences),
    ]  # fmt: skip


def _verdict(differences: Sequence[Estimate | None]) -> str:
    """Over which of the two the interval of the gain lies above 0."""
    known = [difference for difference in differences if difference is not None]
    if len(known) < len(differences) or min(difference.seeds for difference in known) < ENOUGH:
        return "too few seeds"
    twin, widened = (difference.verdict > 0 for difference in known)
    words = {(True, True): "over both", (True, False): "over the twin", (False, True): "over the widened network"}
    return words.get((twin, widened), "not shown")


def demo(outcome: Outcome) -> Iterator[str]:
    """README's table, and what it says: the demo's networks over the seeds of its study."""
    arm = "condconv8"
    twin, widened = outcome.twin(arm), outcome.widened(arm)
    if twin is None or widened is None:
        return
    times = {row["network"]: row for row in _times()}

    def cells(name: str, arm: str, *others: str) -> list[str]:
        gains = [gain(outcome, arm, other) for other in others] + [""] * (2 - len(others))
        ratio = outcome.macs(arm) / outcome.macs(twin)
        took = [float(times[name][key]) / float(times["static"][key]) for key in ("epoch_s", "image_ms") if times]
        return [name, shown(outcome.mean(arm)), *gains, f"{ratio:.3f}", *(f"{value:.2f}" for value in took)]

    head = ["network", "top-1 / %", "gain over static", "gain over widened", "multiply-adds"]
    if times:
        head += ["time of an epoch", "of an image"]
    yield from table(
        head, [cells("conditional", arm, twin, widened), cells("static", twin), cells("widened", widened, twin)]
    )
    above, seeds = outcome.above_both(arm)
    yield f"\nIn {above} of the {seeds} seeds in which all three are trained, the conditional network is above both.\n"
    if times:
        row = times["static"]
        yield (
            f"Multiply-adds and times are ratios to the static network; times of one run on {row['machine']},\n"
            f"{row['threads']} threads, torch {row['torch']}, {row['date']}.\n"
        )
    else:
        yield "Multiply-adds are ratios to the static network.\n"
    stronger = [outcome.under(STRONGER, arm, other) for other in (twin, widened)]
    if all(stronger):
        over_twin, over_widened = (shown(estimate(values), sign=True) for values in stronger)
        yield (
            f"Under noise 1.5 times as strong as any in training it gains {over_twin} points over the static\n"
            f"network and {over_widened} over the widened one ({len(stronger[0])} seeds).\n"
        )


def _times() -> list[dict[str, str]]:
    """What `benchmarks.accuracy.demo_times` wrote, if it has been run."""
    if not TIMES.exists():
        return []
    with TIMES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
