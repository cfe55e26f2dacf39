"""A bar inside the epoch, under the table: images, images/s, loss, and when the epoch ends."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from condconv.tasks.base import Batch
from condconv.training.module import TrainingModule

_REFRESH_S = 0.2


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Images per second, of the last half minute."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} images/s", style="progress.data.speed")


class EpochBar(pl.Callback):
    """Shows the epoch that is running on a terminal; elsewhere nothing is written. For the first process alone.

    It is drawn between two steps, and by no thread of its own: loader processes are forked while it is there.
    """

    def __init__(self, console: Console) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
            TextColumn("{task.fields[loss]}"), TextColumn("ETA"), TimeRemainingColumn(compact=True),
            console=console, transient=True, auto_refresh=False, disable=not console.is_terminal,
        )  # fmt: skip
        self.line = self.bar.add_task("", total=None, loss="")
        self._drawn = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Training goes on; the loss is this process's running mean over the epoch."""
        assert isinstance(pl_module, TrainingModule)
        if not self._due(trainer.is_last_batch):
            return
        of_one = len(batch[0]) * trainer.world_size
        metric = pl_module.train_loss
        self._show(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", (batch_idx + 1) * of_one,
            int(trainer.num_training_batches) * of_one, f"loss {float(metric.mean_value / metric.weight):.4f}",
        )  # fmt: skip

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Validation goes on."""
        if self._due(batch_idx == 0):
            of_one = len(batch[0]) * trainer.world_size
            total = int(sum(trainer.num_val_batches)) * of_one
            self._show("validation", (batch_idx + 1) * of_one, total, "")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the bar away, before anything is said about the end."""
        self.bar.stop()

    def _due(self, at_once: bool) -> bool:
        """Whether it is time to draw. A look at the loss makes the program wait for the device."""
        now = time.monotonic()
        if self.bar.disable or (now - self._drawn < _REFRESH_S and not at_once):
            return False
        self._drawn = now
        return True

    def _show(self, what: str, done: int, total: int, loss: str) -> None:
        if self.bar.tasks[0].description != what:
            self.bar.reset(self.line, description=what, total=total, loss=loss)
        self.bar.update(self.line, completed=done, loss=loss, refresh=True)
