"""Checkpoints: written whole or not at all, read without unpickling code, refused where they belong to something
else.
"""

from __future__ import annotations

import io
import pickle
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from condconv.errors import CheckpointError
from condconv.files import write_bytes
from condconv.reading import open_regular
from condconv.runs.config import TrainConfig, without_retired
from condconv.signals import Interrupted, StopRequest, agree

FORMAT = 1


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to files, through `write_bytes` and `torch.load(weights_only=True)`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint, or raise `CheckpointError` and leave the former one."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `read_checkpoint`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package; `CheckpointError` where it is missing, damaged or something else."""
    try:
        with open_regular(path) as file:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError:
        # torch's own words advise to switch this safety off.
        raise CheckpointError(
            f"{path}: refused: damaged, or it holds more than tensors and plain values, which would run code to be read"
        ) from None
    except Exception as error:  # torch reads damaged archives into errors of every kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint, truncated or damaged ({reason})") from error
    about = checkpoint.get("condconv") if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or not isinstance(about.get("format"), int) or "identity" not in about:
        raise CheckpointError(f"{path}: a file of torch, but not a checkpoint of 'condconv train'")
    if checkpoint["condconv"]["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: written in format {checkpoint['condconv']['format']} by a newer version; this one reads {FORMAT}"
        )
    return checkpoint


def require_same_run(
    path: Path, checkpoint: dict[str, Any], identity: dict[str, Any], module: pl.LightningModule
) -> None:
    """Raise `CheckpointError` unless the checkpoint is of this run's network: same settings, same tensors.

    A setting that there was not when the checkpoint was written is as it was then: its default.
    """
    defaults = {field.name: field.default for field in fields(TrainConfig) if field.name in identity}
    saved = {**defaults, **without_retired(checkpoint["condconv"]["identity"])}
    differing = [
        f"{key} {saved.get(key)!r} there, {identity.get(key)!r} here"
        for key in sorted(saved.keys() | identity.keys())
        if saved.get(key) != identity.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{path}: a checkpoint of another run ({'; '.join(differing)}); "
            "resume the run that wrote it, or start a new one"
        )
    mismatches = tensor_mismatches(checkpoint["state_dict"], module.state_dict())
    if mismatches:
        raise CheckpointError(f"{path}: a checkpoint of another model; " + "; ".join(mismatches))


def tensor_mismatches(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What differs in names and shapes, in words, one entry for each tensor."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not in the model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in found.keys() & expected.keys()
        if found[name].shape != expected[name].shape
    ]
    return sorted(problems)


class CheckpointKeeper(pl.Callback):
    """Keeps one checkpoint up to date: after each epoch, every five minutes inside one, and when asked to stop.

    All processes save and stop at the same step; gradients that are still being accumulated are part of no checkpoint.
    A stop that comes during validation takes effect after it. What is not finite is not saved. Placed last among the
    callbacks, so that the others' states are those after the step.
    """

    every_seconds = 300.0

    def __init__(self, path: Path, identity: dict[str, Any], stop: StopRequest) -> None:
        self.path = path
        self.identity = identity
        self.stop = stop
        self._saved_at = time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say whose checkpoint it is."""
        checkpoint["condconv"] = {"format": FORMAT, "identity": self.identity}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step: save when it is time, stop when asked. The last step is left to the end of the epoch."""
        inside_step = (batch_idx + 1) % trainer.accumulate_grad_batches
        if inside_step or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        due = time.monotonic() - self._saved_at >= self.every_seconds
        # One number for both questions: which signal came (in any process), and whether it is time.
        agreed = agree(2 * self.stop.signum + due)
        if agreed:
            self._save(trainer, pl_module)
        if agreed > 1:
            raise Interrupted(agreed // 2)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and stop when asked."""
        self._save(trainer, pl_module)
        signum = agree(self.stop.signum)
        if signum:
            raise Interrupted(signum)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.require_finite(trainer.fit_loop.epoch_loop.batch_idx)  # type: ignore[operator]
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()
