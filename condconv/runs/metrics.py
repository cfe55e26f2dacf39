"""The rows of metrics.csv."""

from __future__ import annotations

EpochRow = dict[str, float | int | str]
"""One epoch of one network: the columns of metrics.csv."""

COLUMNS = (
    "network", "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "temperature",
    "gradient_norm", "router_entropy", "dead_experts", "always_on_experts", "router_bimodality", "images_per_s",
    "loading_share", "seconds", "memory_mb",
)  # fmt: skip
TIMING_COLUMNS = frozenset({"images_per_s", "loading_share", "seconds", "memory_mb"})
"""Columns that differ between two runs of the same settings."""
