"""Loaders whose position inside an epoch is part of the checkpoint."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from condconv.data import EpochSampler, Source
from condconv.signals import leave_signals_to_parent
from condconv.tasks.base import Samples, Task


class PositionedLoader(DataLoader[tuple[Any, ...]]):
    """A loader that Lightning recognises as resumable; the position itself is kept by `SourceDataModule`."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see `SourceDataModule.state_dict`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: see `SourceDataModule.load_state_dict`."""


class SourceDataModule(pl.LightningDataModule):
    """Training and validation loaders of a source, in the order of (seed, epoch), shared among processes."""

    def __init__(self, source: Source, task: Task, *, batch_size: int, workers: int) -> None:
        super().__init__()
        config = task.config
        self.collate = task.collate
        self.batch_size = batch_size
        self.images_per_step = batch_size * config.accumulate
        self.workers = workers
        self.seed = config.seed
        self.balanced = source.train.labels if config.balance == "sampling" else None
        self.train_view = task.view(source, train=True, skip_bad=config.skip_bad_images)
        self.val_view = task.view(source, train=False, skip_bad=config.skip_bad_images)
        self.start = (0, 0)

    def train_dataloader(self) -> PositionedLoader:
        """Full steps only: the few images left over are others in each epoch."""
        sampler = self._sampler(self.train_view, shuffle=True, multiple_of=self.images_per_step)
        sampler.resume(*self.start)
        return self._loader(self.train_view, sampler)

    def val_dataloader(self) -> PositionedLoader:
        """Every image once."""
        return self._loader(self.val_view, self._sampler(self.val_view, shuffle=False))

    def _sampler(self, view: Samples, shuffle: bool, multiple_of: int = 1) -> EpochSampler:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpochSampler(
            len(view), shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size, multiple_of=multiple_of,
            labels=self.balanced if shuffle else None,
        )  # fmt: skip

    def _loader(self, view: Samples, sampler: EpochSampler) -> PositionedLoader:
        return PositionedLoader(
            view,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals_to_parent,
            # A generator of its own: starting a pass over the data must not draw from the one that dropout uses.
            generator=torch.Generator().manual_seed(0),
        )

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and samples of this process already trained on in it."""
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch:
            return {"epoch": self.trainer.current_epoch + 1, "position": 0}
        return {"epoch": self.trainer.current_epoch, "position": progress.current.ready * self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next training loader at the saved position."""
        self.start = (state["epoch"], state["position"])
