"""A sweep of the learning rate: it grows exponentially from step to step while the loss is watched.

Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017. Lightning's own keeps the
smoothed loss alone, of one batch of each step: too little to tell a fall of the loss from noise.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch

from condconv.errors import ArgumentError
from condconv.training.experiment import Experiment, silence_lightning

SMOOTHING = 0.9
DIVERGED = 4.0
"""The sweep ends when the smoothed loss is so many times its smallest value."""


@dataclass(frozen=True)
class Point:
    """One step: its learning rate, its loss, and the loss smoothed over the steps before."""

    lr: float
    loss: float
    smoothed: float


class _Watch(pl.Callback):
    def __init__(self) -> None:
        self.points: list[Point] = []
        self._average = 0.0
        self._losses: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; when a step was taken, note the step, and end when the loss has blown up."""
        self._losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        if len(self._losses) < trainer.accumulate_grad_batches:
            return
        loss = sum(self._losses) / len(self._losses)
        self._losses.clear()
        self._average = SMOOTHING * self._average + (1 - SMOOTHING) * loss
        smoothed = self._average / (1 - SMOOTHING ** (len(self.points) + 1))
        # The scheduler has moved on already.
        rate = pl_module.lr * pl_module.factor(len(self.points))  # type: ignore[operator]
        if math.isfinite(loss):
            self.points.append(Point(rate, loss, smoothed))
        smallest = min((point.smoothed for point in self.points), default=math.inf)
        if not math.isfinite(loss) or smoothed > DIVERGED * smallest:
            trainer.should_stop = True


def sweep(experiment: Experiment, lowest: float, highest: float, steps: int) -> list[Point]:
    """Train the run's first network for so many steps, from learning rate `lowest` to `highest`; rates as a step uses
    them, whatever `lr` and `base_batch` say.
    """
    silence_lightning()
    torch.manual_seed(experiment.config.seed)
    growth = (highest / lowest) ** (1 / (steps - 1))
    scale = lowest / experiment.module(torch.nn.Identity()).lr
    module = experiment.module(experiment.specs[0].build(), lambda step: scale * growth**step)
    watch = _Watch()
    trainer = experiment.trainer([watch], max_steps=steps, max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, datamodule=experiment.data())
    return watch.points


def suggestion(points: Sequence[Point]) -> float:
    """A tenth of the rate at which the smoothed loss is smallest; beyond that one it is about to blow up.

    Raises:
        ArgumentError: the loss is smallest at an end of the sweep, or was never finite.
    """
    if not points:
        raise ArgumentError("lr-find: the loss is not finite from the first step on; check the data, or lower --lowest")
    best = min(range(len(points)), key=lambda i: points[i].smoothed)
    if best in (0, len(points) - 1):
        way, end = ("rises", "--lowest") if best == 0 else ("falls", "--highest")
        raise ArgumentError(
            f"lr-find: the loss {way} all the way from {points[0].lr:g} to {points[-1].lr:g}; change {end}, or take "
            "more --steps"
        )
    return points[best].lr / 10


def doubt(points: Sequence[Point]) -> str | None:
    """Why this may be noise: the smoothed loss fell by less than two standard deviations of a step. Or None."""
    best = min(range(len(points)), key=lambda i: points[i].smoothed)
    fall = points[0].smoothed - points[best].smoothed
    noise = statistics.pstdev(point.loss - point.smoothed for point in points[: best + 1])
    if fall >= 2 * noise:
        return None
    return (
        f"the smoothed loss fell by {fall:.3g} only, and steps differ from it by {noise:.3g}: the suggestion may be "
        "noise; take more images, a larger --batch-size or more --steps"
    )


def to_csv(points: Sequence[Point]) -> str:
    """One line for each step."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["step", "learning_rate", "loss", "smoothed_loss"])
    writer.writerows([i, point.lr, point.loss, point.smoothed] for i, point in enumerate(points, 1))
    return buffer.getvalue()
