"""What `condconv.analysis` shows of a run: pictures for TensorBoard while it trains, a report when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from torch import nn

from condconv.analysis import Analysis, RecordedNetwork, examine, write_report
from condconv.analysis.collect import COUNTERFACTUAL_IMAGES
from condconv.analysis.curves import MEASURED
from condconv.analysis.drawing import to_pixels
from condconv.analysis.report import PAGE, draw
from condconv.data import Source
from condconv.inference.assessment import INTACT, scores_with
from condconv.tasks.base import Task
from condconv.training.callbacks import Row
from condconv.training.module import TrainingModule
from condconv.training.networks import NetworkSpec
from condconv.training.routing import conditional_layers
from condconv.training.run_folder import RunFolder

_WATCHED_IMAGES = 1000
_BATCH = 128


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


@dataclass(frozen=True)
class RoutingFound:
    """The page of a run's routing report, and what routing did in one sentence."""

    page: Path
    sentence: str


def routing_report(
    folder: RunFolder,
    task: Task,
    source: Source,
    networks: Sequence[tuple[NetworkSpec, nn.Module, Sequence[Row]]],
    workers: int,
) -> RoutingFound | None:
    """Write the report on the conditional network of a run, its folder `report`; None where the run has none.

    Args:
        folder: of the run.
        task: what was trained.
        source: the data set; its validation images are used.
        networks: all networks of the run after their last epoch, with their epochs.
        workers: loader processes.
    """
    recorded = [
        RecordedNetwork(folder.path.name, spec.name, spec.cost.macs, [_measured(row) for row in rows])
        for spec, _, rows in networks
        if task.score.column in MEASURED
    ]
    for _, network, _ in networks:
        if conditional_layers(network):
            found, images = examine(network, source, title=folder.path.name, workers=workers, task=task)
            report = write_report(folder.path / "report", found, images=images, runs=recorded, replace=True)
            return RoutingFound(report / PAGE, what_routing_did(found, task, network, source))
    return None


def what_routing_did(found: Analysis, task: Task, network: nn.Module, source: Source) -> str:
    """In one sentence: what is left of the score with others' coefficients, and how much these vary."""
    changed = found.collection.counterfactuals
    measures = [found.measures[group.name] for group in found.groups]
    spread = sum(measure.spread for measure in measures) / len(measures)
    if not changed:
        few = source.limited(None, COUNTERFACTUAL_IMAGES)
        how = {"batch_size": _BATCH, "workers": 0, "device": next(network.parameters()).device, "skip_bad": True}
        scores = scores_with((INTACT, "mean", "shuffle"), network, few, task, **how)
        shown = {name: f"{task.score.shown(value)} {task.score.unit}" for name, value in scores.items()}
        return (
            f"What routing did: on {len(few.val):,} validation images the {task.score.title} is {shown[INTACT]} with "
            f"each image's own kernels, {shown['mean']} with the mean of a batch's kernels, and {shown['shuffle']} "
            f"with those of another image; the spread of the coefficients between images is {spread:.3f}."
        )
    return (
        f"What routing did: on {changed['intact'].images:,} validation images the network is right for "
        f"{changed['intact'].value:.1%} with each image's own kernels, for {changed['mean'].value:.1%} with the mean "
        f"of all images' kernels, and for {changed['shuffle'].value:.1%} with those of another image; the spread of "
        f"the coefficients between images is {spread:.3f}."
    )


def _measured(row: Row) -> dict[str, float]:
    """The numbers of an epoch; NaN for a temperature where there is none."""
    return {name: float(row[name]) if row[name] != "" else float("nan") for name in MEASURED}
