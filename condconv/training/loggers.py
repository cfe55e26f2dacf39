"""The numbers of the epochs for whoever shows them: TensorBoard, Weights & Biases, MLflow. All of it stays on this disk
unless the environment says otherwise.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from condconv.errors import ArgumentError
from condconv.runs.config import TrainConfig
from condconv.training.callbacks import EpochRows

_PACKAGES = {
    "tensorboard": ("tensorboard", "condconv[train]"),
    "wandb": ("wandb", "condconv[wandb]"),
    "mlflow": ("mlflow", "condconv[mlflow]"),
}


def require_logger(name: str) -> None:
    """Raise `ArgumentError`, with the command that installs it, where a logger's package is missing."""
    package, extra = _PACKAGES.get(name, (None, None))
    if package is not None and importlib.util.find_spec(package) is None:
        raise ArgumentError(f"--logger {name}: needs the package {package}; install it with: pip install '{extra}'")


class EpochLogger(pl.Callback):
    """Hands the row of each epoch to a logger of Lightning. Placed after `EpochRows`; for the first process alone.

    Whatever the logger raises, training goes on: it is said once, and where the numbers are. A resumed network goes on
    with the logger's run, whose id is part of the checkpoint.

    Args:
        config: its `logger` says which.
        folder: of the run.
        rows: the epochs of this network.
        notice: shows one line to the user.
    """

    def __init__(self, config: TrainConfig, folder: Path, rows: EpochRows, notice: Callable[[str], None]) -> None:
        self.config = config
        self.folder = folder
        self.epochs = rows
        self.notice = notice
        self.id: str | None = None
        self.logger: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the logger."""

        def begin() -> None:
            self.logger = _open(self.config.logger, self.folder, self.epochs.network, self.id)
            self.logger.log_hyperparams({**self.config.to_dict(), "network": self.epochs.network})
            self.id = getattr(self.logger, "run_id", None) or str(self.logger.version)

        self._guarded(begin)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the numbers of the epoch that is over."""
        row = self.epochs.rows[-1]
        numbers = {name: float(value) for name, value in row.items() if not isinstance(value, str) and name != "epoch"}
        if self.logger is not None:
            self._guarded(lambda: self.logger.log_metrics(numbers, step=int(row["epoch"])))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the logger."""
        self._close("success")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the logger."""
        self._close("failed")

    def state_dict(self) -> dict[str, Any]:
        """Which of the logger's runs it is."""
        return {"id": self.id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that run."""
        self.id = state_dict["id"]

    def _close(self, status: str) -> None:
        logger, self.logger = self.logger, None
        if logger is None:
            return

        def end() -> None:
            logger.finalize(status)
            finish = getattr(getattr(logger, "experiment", None), "finish", None)
            if finish is not None:  # Weights & Biases: the next network would go on with this one's run
                finish()

        self._guarded(end)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of every kind, from a program that is not ours
            self.logger = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self.notice(
                f"notice: --logger {self.config.logger} refuses ({reason}); training goes on without it, and the "
                f"numbers are in {self.folder / 'metrics.csv'}"
            )


def _open(name: str, folder: Path, network: str, version: str | None) -> Any:
    """The logger of Lightning; imported here, as each is slow and brings its package."""
    title = f"{folder.name}-{network}"
    if name == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(str(folder), name="tensorboard", version=network, default_hp_metric=False)
    if name == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        os.environ.setdefault("WANDB_SILENT", "true")
        mode = os.environ.get("WANDB_MODE", "offline")
        return WandbLogger(
            name=title, project=os.environ.get("WANDB_PROJECT", "condconv"), save_dir=str(folder), id=version,
            resume="allow", mode=mode,
        )  # fmt: skip
    from pytorch_lightning.loggers import MLFlowLogger

    where = os.environ.get("MLFLOW_TRACKING_URI")
    if where is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its small package has no other store on a disk
        where = (folder / "mlflow").resolve().as_uri()
    return MLFlowLogger("condconv", run_name=title, tracking_uri=where, run_id=version)
