"""What happens beside the steps: damaged images, and the row of each epoch."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from condconv.evaluation.routing import routed_together
from condconv.routers import annealed_gates
from condconv.runs.metrics import EpochRow
from condconv.tasks.base import Batch
from condconv.training.module import TrainingModule


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


class EpochRows(pl.Callback):
    """Makes the row of each epoch and hands it on; the rows so far are part of the checkpoint.

    `images_per_s` is of training alone, and `loading_share` the part of that time in which a step waited for its
    images; `seconds` is of training and validation, `memory_mb` the peak: of this process on a CPU, of the device
    otherwise. `gradient_norm` is the mean over the steps, before clipping. Of the routers: entropy and bimodality are
    means, dead and always-on experts sums (see `RouterHealth`).
    """

    def __init__(self, network: str, on_row: Callable[[list[EpochRow]], None]) -> None:
        self.network = network
        self.on_row = on_row
        self.rows: list[EpochRow] = []
        self._train_seconds = 0.0
        self._waiting_seconds = 0.0
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

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count the time in which there was no batch."""
        elapsed = self._lap()
        self._waiting_seconds += elapsed
        self._train_seconds += elapsed
        self._seconds += elapsed

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count time and images of training."""
        elapsed = self._lap()
        self._train_seconds += elapsed
        self._seconds += elapsed
        self._images += len(batch[0]) * trainer.world_size

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the row, hand it on, begin the next."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.require_finite(int(trainer.num_training_batches) - 1)
        self._seconds += self._lap()
        temperature = next((gate.value for gate in annealed_gates(pl_module)), "")
        self.rows.append(
            {
                "network": self.network,
                "epoch": trainer.current_epoch + 1,
                **{name: float(metric.compute()) for name, metric in pl_module.training_metrics.items()},
                **pl_module.meter.compute(),
                "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
                "temperature": temperature,
                **router_columns(pl_module),
                "images_per_s": self._images / self._train_seconds,
                "loading_share": self._waiting_seconds / self._train_seconds,
                "seconds": self._seconds,
                "memory_mb": peak_memory_mb(pl_module.device),
            }
        )
        self._train_seconds = self._waiting_seconds = self._seconds = 0.0
        self._images = 0
        self.on_row(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Rows so far, and the epoch's counts so far."""
        seconds = (self._train_seconds, self._waiting_seconds, self._seconds)
        return {"rows": [dict(row) for row in self.rows], "seconds": seconds, "images": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._train_seconds, self._waiting_seconds, self._seconds = state_dict["seconds"]
        self._images = state_dict["images"]


def router_columns(module: TrainingModule) -> EpochRow:
    """What a row says about the routers, each counted once however many layers it serves; empty without routers."""
    if module.routing is None:
        return dict.fromkeys(("router_entropy", "dead_experts", "always_on_experts", "router_bimodality"), "")
    summary = module.routing.compute()
    routers = [summary.health[first] for first in routed_together(module.network) if first in summary.health]
    return {
        "router_entropy": summary.entropy,
        "dead_experts": sum(len(router.dead) for router in routers),
        "always_on_experts": sum(len(router.always_on) for router in routers),
        "router_bimodality": sum(router.bimodality for router in routers) / len(routers),
    }


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in 10^6 bytes: of the CUDA device, or of this process (resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Linux counts in 1024 bytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
