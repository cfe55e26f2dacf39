"""Pictures of the routing for TensorBoard while a network trains."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from condconv.analysis import examine
from condconv.analysis.drawing import to_pixels
from condconv.analysis.report import draw
from condconv.data import Source
from condconv.tasks.base import Task
from condconv.training.module import TrainingModule

_WATCHED_IMAGES = 1000


class RoutingImages(pl.Callback):
    """Writes the figures of `condconv.analysis` for TensorBoard, from a thousand validation images.

    Args:
        task: what is trained.
        source: the data set; its validation images are used.
        folder: of the TensorBoard events.
        every_epochs: how many epochs between two sets of pictures.
    """

    def __init__(self, task: Task, source: Source, folder: Path, every_epochs: int) -> None:
        self.task = task
        self.source = source
        self.folder = folder
        self.every_epochs = every_epochs
        # Here and not at the top: it is slow, and a missing package is to be found out before the first epoch.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the pictures of this epoch, if it is its turn."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_epochs or not isinstance(pl_module, TrainingModule):
            return
        found, images = examine(
            pl_module.network, self.source, title="", limit=_WATCHED_IMAGES, workers=0, counterfactual_images=0,
            task=self.task,
        )  # fmt: skip
        with self._writer(self.folder) as writer:
            for drawn in draw(found, images):
                writer.add_image(f"routing/{drawn.name}", to_pixels(drawn), epoch, dataformats="HWC")
