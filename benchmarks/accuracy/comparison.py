"""What a study found: means and paired differences over seeds, with their 95 % intervals by Student's t."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from scipy.stats import t as student_t

from condconv.studies.study import START_FROM, WIDENED_TO, Cell, Claim, Study, StudyRow

CONFIDENCE = 0.95
SAME_COST = 0.02
"""A widened network stands for a conditional one where their multiply-adds differ by at most this share."""

SAME_SHAPE = 0.001
"""What rounding the ratio of a row may change."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `half_width` of its interval is NaN for a single seed."""

    mean: float
    half_width: float
    seeds: int

    @property
    def verdict(self) -> int:
        """1 or -1 where the interval lies above or below 0, else 0."""
        if math.isnan(self.half_width):
            return 0
        return (self.mean - self.half_width > 0) - (self.mean + self.half_width < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of some values, one for each seed, with its interval."""
    count = len(values)
    if count < 2:
        return Estimate(values[0], math.nan, count)
    factor = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Estimate(statistics.fmean(values), factor * statistics.stdev(values) / math.sqrt(count), count)


class Outcome:
    """The finished runs of a study, by arm."""

    def __init__(self, study: Study, finished: Mapping[Cell, StudyRow]) -> None:
        self.study = study
        self.rows = {
            arm: {seed: finished[arm, seed] for seed in study.seeds if (arm, seed) in finished} for arm in study.arms
        }

    @property
    def arms(self) -> list[str]:
        """Those with at least one finished run."""
        return [arm for arm, rows in self.rows.items() if rows]

    def any_row(self, arm: str) -> StudyRow:
        """One of an arm's rows, for what does not depend on the seed."""
        return next(iter(self.rows[arm].values()))

    def macs(self, arm: str) -> int:
        """Multiply-adds of an arm."""
        return int(self.any_row(arm)["macs"])

    def mean(self, arm: str, column: str | None = None) -> Estimate:
        """The mean of a column, by default the study's score, over an arm's seeds."""
        return estimate([float(row[column or self.study.score.study_column]) for row in self.rows[arm].values()])

    def difference(self, arm: str, other: str) -> Estimate | None:
        """The score of an arm minus that of another, paired by seed; None without a common seed."""
        common = self.rows[arm].keys() & self.rows[other].keys()
        score = self.study.score.study_column
        pairs = [
            float(self.rows[arm][seed][score]) - float(self.rows[other][seed][score]) for seed in sorted(common)
        ]
        return estimate(pairs) if pairs else None

    def above_both(self, arm: str) -> tuple[int, int]:
        """In how many seeds an arm is above its twin and its widened network, of those in which all three are run."""
        others = [self.rows[other] for other in (self.twin(arm), self.widened(arm)) if other is not None]
        if len(others) < 2:
            return 0, 0
        seeds = [seed for seed in self.rows[arm] if all(seed in rows for rows in others)]
        best = (max(float(rows[seed]["top1_pct"]) for rows in others) for seed in seeds)
        return sum(float(self.rows[arm][s]["top1_pct"]) > top for s, top in zip(seeds, best, strict=True)), len(seeds)

    @cached_property
    def conditions(self) -> dict[tuple[str, str], dict[int, float]]:
        """Top-1 / % by seed of an arm with all validation images under one condition."""
        found: dict[tuple[str, str], dict[int, float]] = {}
        for row in self.beside("by_condition"):
            found.setdefault((row["arm"], row["condition"]), {})[int(row["seed"])] = float(row["top1_pct"])
        return found

    def under(self, condition: str, arm: str, other: str) -> list[float]:
        """Top-1 of an arm under a condition minus that of another, by common seed."""
        mine, others = (self.conditions.get((name, condition), {}) for name in (arm, other))
        return [mine[seed] - others[seed] for seed in sorted(mine.keys() & others.keys())]

    def beside(self, table: str) -> list[StudyRow]:
        """The rows of finished runs in a table beside that of the runs: "epochs" or "by_condition"."""
        path = self.study.results.with_name(f"{self.study.name}_{table}.csv")
        if not path.exists():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["seed"]) in self.rows.get(row["arm"], {})]

    def claimed(self, claim: Claim) -> Estimate | None:
        """The difference that a claim is about."""
        return self.difference(claim.better, claim.worse)

    @property
    def conditional(self) -> list[str]:
        """The finished arms that are conditional networks."""
        return [arm for arm in self.arms if self.any_row(arm)["variant"] != "none"]

    def twin(self, arm: str) -> str | None:
        """The static arm of the same shape that was trained for as many epochs in total."""
        plain = self.macs(arm) / float(self.any_row(arm)["ratio"])
        same_shape = [other for other in self._static(arm) if abs(self.macs(other) / plain - 1) < SAME_SHAPE]
        return next((other for other in same_shape if WIDENED_TO not in self.study.arms[other]), None)

    def widened(self, arm: str) -> str | None:
        """The widened static arm closest to an arm in multiply-adds, if within 2 %, trained for as many epochs."""
        others = [other for other in self._static(arm) if WIDENED_TO in self.study.arms[other]]
        closest = min(others, key=lambda other: abs(self.macs(other) - self.macs(arm)), default=None)
        if closest is None or abs(self.macs(closest) / self.macs(arm) - 1) > SAME_COST:
            return None
        return closest

    def _static(self, arm: str) -> list[str]:
        epochs = total_epochs(self.study, arm)
        return [
            other for other in self.arms if other not in self.conditional and total_epochs(self.study, other) == epochs
        ]


def total_epochs(study: Study, arm: str) -> int:
    """Epochs of an arm and of those that it starts from."""
    settings = {**study.common, **study.arms[arm]}
    before = total_epochs(study, settings[START_FROM]) if START_FROM in settings else 0
    return before + int(settings["epochs"])
