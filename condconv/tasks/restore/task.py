"""Restoration as a task: mean squared error, PSNR and SSIM, pictures before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from condconv.data import IGNORED, Source
from condconv.errors import DataError, argument_error
from condconv.evaluation.evaluate import Evaluation
from condconv.models.restorer import RESTORERS
from condconv.runs.config import TrainConfig
from condconv.tasks.base import OF_LABELS, Batch, Request, Samples, Task
from condconv.tasks.restore import SCORE
from condconv.tasks.restore.degradations import parse_degradations
from condconv.tasks.restore.drawing import before_after, quality_by_strength
from condconv.tasks.restore.evaluation_report import headline, table_by_strength, write_evaluation
from condconv.tasks.restore.evaluator import RestorationEvaluator, Restored
from condconv.tasks.restore.pictures import SMALLEST, open_pictures
from condconv.tasks.restore.prediction import check_folder, restore
from condconv.tasks.restore.quality import psnr, ssim
from condconv.tasks.restore.view import PictureView


class Restoration(Task):
    """Degraded pictures (B, C, H, W) → pictures of the same shape; batches are made of `Pair`."""

    name = "restore"
    score = SCORE
    training_columns = ("train_psnr",)
    validation_columns = ("val_loss", "val_psnr", "val_ssim")
    loss_title = "mean squared error"
    unused = (
        *OF_LABELS,  # of classes of whole images
        "num_classes", "random_crop", "auto_augment", "conditions", "mixup", "label_smoothing", "dropout", "drop_path",
        "output_stride", "detection_loss",
    )  # fmt: skip
    predictions = "restored"
    left_out = "nothing is written for it"
    evaluates = "how close it comes, by degradation and strength"

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.degradations = parse_degradations(config.degradations)

    def open(self, data: str, *, skip_bad: bool = False) -> Source:
        """See `pictures.open_pictures`."""
        return open_pictures(data, skip_bad=skip_bad)

    def prepared(self, source: Source) -> Source:
        """Crops of a size that has something to restore."""
        source = super().prepared(source)
        if min(source.image_size) < SMALLEST:
            raise DataError(
                f"{source.name}: pictures of {source.image_size[0]} x {source.image_size[1]} pixels; restoration needs "
                f"at least {SMALLEST} x {SMALLEST}"
            )
        return source if self.config.input_size is None else replace(source, native=False)

    def view(self, source: Source, *, train: bool, skip_bad: bool = False) -> Samples:
        """See `PictureView`."""
        return PictureView(source, self.degradations, train=train, seed=self.config.seed, skip_bad=skip_bad)

    def about(self, source: Source) -> str:
        """What was done to the pictures."""
        return f"crops of {source.image_size[0]} x {source.image_size[1]} pixels, {self.config.degradations}"

    def groups(self, source: Source) -> tuple[str, ...]:
        """Each degradation at each level of its strength."""
        return self.degradations.groups()

    def group_of(self, batch: Batch) -> Tensor:
        """Which of them."""
        groups: Tensor = batch[4]
        return groups

    def recipe(self, source: Source) -> str:
        """The recipe of this task."""
        return "restore"

    def network_arguments(self, source: Source) -> dict[str, Any]:
        """The channels."""
        if self.config.model not in RESTORERS:
            remedy = f"pass one of {', '.join(RESTORERS)}, or leave it out"
            raise argument_error("train", "model", self.config.model, "does not restore pictures", remedy)
        return {"in_chans": source.channels}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(output, batch[1])

    def measured(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """The PSNR of each picture."""
        return {"train_psnr": psnr(output, batch[1])}

    def meter(self, source: Source) -> nn.Module:
        """Loss, PSNR and SSIM."""
        return RestorationMeter()

    def evaluator(self, source: Source, view: Samples) -> RestorationEvaluator:
        """See `RestorationEvaluator`."""
        return RestorationEvaluator(self.groups(source))

    def pictures(self, found: Mapping[str, Restored], source: Source) -> dict[str, bytes]:
        """Before and after, and PSNR by strength."""
        return {"before_after.png": before_after(found), "psnr_by_strength.png": quality_by_strength(found)}

    def remarks(self, found: Mapping[str, Restored]) -> list[str]:
        """The table by strength."""
        ssims = ", ".join(f"{network} {each.mean('ssim'):.4f}" for network, each in found.items())
        return [f"SSIM: {ssims}. PSNR and SSIM by the strength of the degradation:", table_by_strength(found)]

    def headline(self, found: Restored) -> str:
        """See `evaluation_report.headline`."""
        return headline(found)

    def write_evaluation(self, out: str | Path, title: str, source: Source, found: Evaluation[Restored]) -> Path:
        """See `evaluation_report.write_evaluation`."""
        return write_evaluation(out, title, source, found)

    def check_output(self, out: Path) -> None:
        """See `prediction.check_folder`."""
        check_folder(out)

    def predict(self, request: Request) -> list[str]:
        """See `prediction.restore`."""
        return restore(request)


class RestorationMeter(nn.Module):
    """Mean squared error, PSNR and SSIM over the pictures that count."""

    def __init__(self) -> None:
        super().__init__()
        # By default NaN would be left out of the means.
        self.loss = MeanMetric(nan_strategy="disable")
        self.psnr = MeanMetric(nan_strategy="disable")
        self.ssim = MeanMetric(nan_strategy="disable")

    def reset(self) -> None:
        """Begin anew."""
        for metric in (self.loss, self.psnr, self.ssim):
            metric.reset()

    def update(self, output: Tensor, batch: Batch) -> None:
        """Add restored pictures (B, C, H, W)."""
        keep = batch[4] != IGNORED
        if not bool(keep.any()):
            return
        restored, clean = output[keep].float(), batch[1][keep]
        self.loss.update(F.mse_loss(restored, clean).expand(len(clean)))
        self.psnr.update(psnr(restored, clean))
        self.ssim.update(ssim(restored, clean))

    def compute(self) -> dict[str, float]:
        """The validation columns."""
        columns = (("val_loss", self.loss), ("val_psnr", self.psnr), ("val_ssim", self.ssim))
        return {name: float(metric.compute()) for name, metric in columns}


TASK = Restoration
