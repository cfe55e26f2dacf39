"""`condconv train --tune`: the fastest strategy of each conditional layer is measured once, and belongs to the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed

from condconv.signals import StopRequest
from condconv.training.module import TrainingModule
from condconv.tuning import pin_records, restore_pins, tune
from condconv.tuning.records import Records


class TuneOnce(pl.Callback):
    """Tunes for the run's batch before the first step.

    What was pinned is in the checkpoints, so that a resumed run computes with the same strategies, bit by bit. The
    first process measures for all.

    Args:
        input_shape: (B, C, H, W) of a pass.
        stop: is asked between two layers.
        say: is told what begins, and what was measured.
    """

    def __init__(self, input_shape: tuple[int, ...], stop: StopRequest, say: Callable[[str], None]) -> None:
        self.input_shape, self.stop, self.say = input_shape, stop, say
        self.records: Records | None = None

    def state_dict(self) -> dict[str, Any]:
        """The pins."""
        return {"records": self.records}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use those pins, and measure nothing."""
        self.records = state_dict["records"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, or pin what was measured when the run began."""
        assert isinstance(pl_module, TrainingModule)
        if self.records is None:
            self.records = self._measured(trainer, pl_module)
        restore_pins(pl_module.network, self.records, "--tune")

    def _measured(self, trainer: pl.Trainer, module: TrainingModule) -> Records:
        if trainer.is_global_zero:
            self.say(f"tuning: measuring the strategies of each conditional layer, for {self.input_shape[0]} images")
            size = torch.Size(self.input_shape)
            # No random number is drawn: a tuned run sees the same ones as another.
            images = torch.linspace(-1, 1, size.numel(), device=module.device).reshape(size)
            with trainer.precision_plugin.forward_context():
                found = tune(
                    module.network, images.to(memory_format=module.memory_format), training=True,
                    progress=lambda *_: self.stop.check(),
                )  # fmt: skip
            self.say(str(found))
        records = [pin_records(module.network)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(records, src=0)
        return records[0]
