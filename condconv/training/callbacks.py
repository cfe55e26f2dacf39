"""What happens beside the steps: damaged images, and the row of each epoch."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from condconv.routers.gates import SoftmaxGate
from condconv.training.module import Batch, ClassificationModule


class DamagedImages(pl.Callback):
    """Collects the indices of images that could not be decoded, as reported by the workers through the batch."""

    def __init__(self) -> None:
        self.train: set[int] = set()
        self.val: set[int] = set()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note the damaged ones."""
        self.train.update(batch[2][~batch[3]].tolist())

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the damaged ones."""
        self.val.update(batch[2][~batch[3]].tolist())

    def state_dict(self) -> dict[str, Any]:
        """Both sets."""
        return {"train": sorted(self.train), "val": sorted(self.val)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both sets."""
        self.train, self.val = set(state_dict["train"]), set(state_dict["val"])


Row = dict[str, float | int | str]
"""One epoch of one network: the columns of metrics.csv."""

COLUMNS = (
    "network", "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "temperature",
    "router_entropy", "images_per_s", "seconds", "memory_mb",
)  # fmt: skip
TIMING_COLUMNS = frozenset({"images_per_s", "seconds", "memory_mb"})
"""Columns that differ between two runs of the same settings."""


class EpochRows(pl.Callback):
    """Makes the row of each epoch and hands it on; the rows so far are part of the checkpoint.

    `images_per_s` is of training alone, `seconds` of training and validation, `memory_mb` the peak: of this process on
    a CPU, of the device otherwise.
    """

    def __init__(self, network: str, on_row: Callable[[list[Row]], None]) -> None:
        self.network = network
        self.on_row = on_row
        self.rows: list[Row] = []
        self._train_seconds = 0.0
        self._seconds = 0.0
        self._images = 0
        self._since: float | None = None

    def _lap(self) -> float:
        now = time.perf_counter()
        elapsed = now - self._since if self._since is not None else 0.0
        self._since = now
        return elapsed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock (a resumed epoch has no epoch start)."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count time and images of training."""
        elapsed = self._lap()
        self._train_seconds += elapsed
        self._seconds += elapsed
        self._images += len(batch[1]) * trainer.world_size

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the row, hand it on, begin the next."""
        assert isinstance(pl_module, ClassificationModule)
        pl_module.require_finite(int(trainer.num_training_batches) - 1)
        self._seconds += self._lap()
        temperature = next((float(m.temperature) for m in pl_module.modules() if isinstance(m, SoftmaxGate)), "")
        self.rows.append(
            {
                "network": self.network,
                "epoch": trainer.current_epoch + 1,
                "train_loss": float(pl_module.train_loss.compute()),
                "train_accuracy": float(pl_module.train_accuracy.compute()),
                "val_loss": float(pl_module.val_loss.compute()),
                "val_accuracy": float(pl_module.val_accuracy.compute()),
                "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
                "temperature": temperature,
                "router_entropy": pl_module.routing.compute()[1] if pl_module.routing is not None else "",
                "images_per_s": self._images / self._train_seconds,
                "seconds": self._seconds,
                "memory_mb": peak_memory_mb(pl_module.device),
            }
        )
        self._train_seconds = self._seconds = 0.0
        self._images = 0
        self.on_row(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Rows so far, and the epoch's counts so far."""
        counts = {"train_seconds": self._train_seconds, "seconds": self._seconds, "images": self._images}
        return {"rows": [dict(row) for row in self.rows], "counts": counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        counts: Mapping[str, Any] = state_dict["counts"]
        self._train_seconds, self._seconds = counts["train_seconds"], counts["seconds"]
        self._images = counts["images"]


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in 10^6 bytes: of the CUDA device, or of this process (resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Linux counts in 1024 bytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
