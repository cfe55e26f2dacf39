"""The best epoch of a network: its weights are kept beside the last ones, and a run may end when none is better."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
from torch import nn

from condconv.runs.metrics import best_epoch
from condconv.tasks import Score
from condconv.training.callbacks import EpochRows
from condconv.training.module import TrainingModule


class BestEpoch(pl.Callback):
    """Keeps the best weights, and stops. Placed after `EpochRows`, from whose rows alone everything follows.

    So there is no state of its own, and a resumed network stops where it would have.

    Args:
        rows: the epochs of this network.
        score: what is compared.
        patience: so many epochs without a better one end the training; None: it goes on.
        keep: is given the network after an epoch that is the best so far.
        notice: shows one line to the user.
    """

    def __init__(
        self,
        rows: EpochRows,
        score: Score,
        patience: int | None,
        keep: Callable[[nn.Module], None],
        notice: Callable[[str], None],
    ) -> None:
        self.epochs = rows
        self.score = score
        self.patience = patience
        self.keep = keep
        self.notice = notice

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A network that has been stopped already goes no further when the run is resumed."""
        trainer.should_stop = trainer.should_stop or self._has_waited()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the epoch that is over."""
        assert isinstance(pl_module, TrainingModule)
        rows = self.epochs.rows
        best = best_epoch(rows, self.score)
        if best == len(rows) - 1:
            self.keep(pl_module.result)
        if self._has_waited():
            trainer.should_stop = True
            value = f"{self.score.shown(float(rows[best][self.score.column]))} {self.score.unit}"
            self.notice(
                f"notice: {self.epochs.network}: stopped after epoch {len(rows)}; {self.score.title} has not been "
                f"better than the {value.strip()} of epoch {best + 1} since"
            )

    def _has_waited(self) -> bool:
        rows = self.epochs.rows
        if self.patience is None or not rows:
            return False
        return len(rows) - 1 - best_epoch(rows, self.score) >= self.patience
