"""What `condconv.analysis` shows of a run: pictures for TensorBoard while it trains, a report when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from torch import nn

from condconv.analysis import RecordedNetwork, analyze, examine
from condconv.analysis.curves import MEASURED
from condconv.analysis.drawing import to_pixels
from condconv.analysis.report import PAGE, draw
from condconv.data import Source
from condconv.training.callbacks import Row
from condconv.training.module import ClassificationModule
from condconv.training.networks import NetworkSpec
from condconv.training.routing import conditional_layers
from condconv.training.run_folder import RunFolder

_WATCHED_IMAGES = 1000


class RoutingImages(pl.Callback):
    """Writes the figures of `condconv.analysis` for TensorBoard, from a thousand validation images.

    Args:
        source: the data set; its validation images are used.
        folder: of the TensorBoard events.
        every_epochs: how many epochs between two sets of pictures.
    """

    def __init__(self, source: Source, folder: Path, every_epochs: int) -> None:
        self.source = source
        self.folder = folder
        self.every_epochs = every_epochs
        # Here and not at the top: it is slow, and a missing package is to be found out before the first epoch.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the pictures of this epoch, if it is its turn."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_epochs or not isinstance(pl_module, ClassificationModule):
            return
        found, images = examine(
            pl_module.network, self.source, title="", limit=_WATCHED_IMAGES, workers=0, counterfactual_images=0
        )
        with self._writer(self.folder) as writer:
            for drawn in draw(found, images):
                writer.add_image(f"routing/{drawn.name}", to_pixels(drawn), epoch, dataformats="HWC")


def routing_report(
    folder: RunFolder, source: Source, networks: Sequence[tuple[NetworkSpec, nn.Module, Sequence[Row]]], workers: int
) -> Path | None:
    """Write the report on the conditional network of a run and return its page; None where the run has none.

    Args:
        folder: of the run; the report becomes its folder `report`.
        source: the data set; its validation images are used.
        networks: all networks of the run after their last epoch, with their epochs.
        workers: loader processes.
    """
    recorded = [
        RecordedNetwork(folder.path.name, spec.name, spec.cost.macs, [_measured(row) for row in rows])
        for spec, _, rows in networks
    ]
    for _, network, _ in networks:
        if conditional_layers(network):
            title = folder.path.name
            report = analyze(
                network, source, folder.path / "report", title=title, workers=workers, runs=recorded, replace=True
            )
            return report / PAGE
    return None


def _measured(row: Row) -> dict[str, float]:
    """The numbers of an epoch; NaN for a temperature where there is none."""
    return {name: float(row[name]) if row[name] != "" else float("nan") for name in MEASURED}
