"""The rows of metrics.csv."""

from __future__ import annotations

from collections.abc import Sequence

from condconv.tasks import Score
from condconv.tasks.base import Task

EpochRow = dict[str, float | int | str]
"""One epoch of one network: the columns of metrics.csv."""

_COLUMNS = (
    "learning_rate", "temperature", "gradient_norm", "router_entropy", "dead_experts", "always_on_experts",
    "router_bimodality", "images_per_s", "loading_share", "seconds", "memory_mb",
)  # fmt: skip
TIMING_COLUMNS = frozenset({"images_per_s", "loading_share", "seconds", "memory_mb"})
"""Columns that differ between two runs of the same settings."""


def columns(task: Task) -> tuple[str, ...]:
    """The columns of metrics.csv."""
    return ("network", "epoch", "train_loss", *task.training_columns, *task.validation_columns, *_COLUMNS)


def best_epoch(rows: Sequence[EpochRow], score: Score) -> int:
    """The first of the epochs with the best score on the validation images, counted from 0."""
    # NaN is above nothing, and nothing is above it.
    values = [value if (value := float(row[score.column])) == value else float("-inf") for row in rows]
    return values.index(max(values))
