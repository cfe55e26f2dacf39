"""Classification as a task: cross-entropy, accuracy, confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from condconv.data import IGNORED, ImageView, MixupView, Source, open_source
from condconv.errors import argument_error
from condconv.evaluation.evaluate import Evaluation
from condconv.evaluation.figures import confusion_matrix
from condconv.models.pose import POSES
from condconv.models.specs import SPECS
from condconv.models.ssd import DETECTORS
from condconv.runs.config import PUBLISHED, SMALL_INPUT, SMALL_INPUT_STRIDES, SMALLEST_MAP, TrainConfig
from condconv.tasks.base import Batch, Request, Samples, Task
from condconv.tasks.classify import SCORE
from condconv.tasks.classify.evaluation_report import headline, write_evaluation
from condconv.tasks.classify.evaluator import ClassificationEvaluator, Classified
from condconv.tasks.classify.prediction import check_format, predict

SMALL_RECIPE = "small_images"
NAMED = 5
"""How many names a notice lists."""


class Classification(Task):
    """Images (B, C, H, W) → logits (B, classes); batches are made of `condconv.data.Sample` or `MixedSample`."""

    name = "classify"
    score = SCORE
    training_columns: ClassVar[tuple[str, ...]] = ("train_accuracy",)
    validation_columns: tuple[str, ...] = ("val_loss", "val_accuracy")
    loss_title = "cross-entropy (training: with label smoothing)"
    unused: ClassVar[tuple[str, ...]] = ("degradations", "detection_loss")
    predictions = "predictions.csv"
    left_out = "its row is empty"
    evaluates = "what it gets right and wrong, class by class"
    averages = True
    class_weights: Tensor | None = None
    """Of the loss: (classes,); None where all weigh the same."""

    def open(self, data: str, *, skip_bad: bool = False) -> Source:
        """See `condconv.data.open_source`; how the settings divide their own data says nothing about other data."""
        config = self.config
        own = {name: getattr(config, name) for name in ("val_dir", "val_fraction", "labels")}
        return open_source(
            data, skip_bad=skip_bad, num_classes=config.num_classes, **(own if data == config.data else {})
        )  # fmt: skip

    def prepared(self, source: Source) -> Source:
        """Also under the settings' conditions; from here on the loss knows how rare each class is."""
        source = super().prepared(source).under(self.config.conditions)
        if self.config.balance == "loss":
            self.class_weights = class_weights(source.train.labels, len(source.classes))
        return source

    def view(self, source: Source, *, train: bool, skip_bad: bool = False) -> Samples:
        """In training augmented, and blended, as the settings say."""
        config = self.config
        view = ImageView(
            source, train=train, seed=config.seed, skip_bad=skip_bad, auto_augment=config.auto_augment,
            random_crop=config.random_crop,
        )  # fmt: skip
        return MixupView(view, config.mixup) if train and config.mixup else view

    def about(self, source: Source) -> str:
        """How many classes."""
        return f"{len(source.classes)} classes"

    def groups(self, source: Source) -> tuple[str, ...]:
        """The classes."""
        return source.classes

    def group_of(self, batch: Batch) -> Tensor:
        """The labels."""
        labels: Tensor = batch[1]
        return labels

    def notices(self, source: Source) -> Iterator[str]:
        """Classes whose accuracy stays unknown."""
        images = self.validated(source).tolist()
        empty = [name for name, number in zip(source.classes, images, strict=True) if number == 0]
        if empty:
            named = ", ".join(empty[:NAMED]) + (", …" if len(empty) > NAMED else "")
            yield (
                f"notice: {len(empty)} of {len(source.classes)} classes have no validation images ({named}): "
                "nothing says how well they are learned; validate on some of each"
            )

    def validated(self, source: Source) -> Tensor:
        """How many validation images each class has: (classes,)."""
        return source.val.labels.bincount(minlength=len(source.classes))

    def recipe(self, source: Source) -> str | None:
        """That of small images, where they are small."""
        side = self.config.input_size or min(source.image_size)
        return SMALL_RECIPE if side < SMALL_INPUT else None

    def network_arguments(self, source: Source) -> dict[str, Any]:
        """Classes, channels, total stride and regularisation."""
        config = self.config
        backbone = SPECS[config.model].backbone if config.model in SPECS else config.model
        for task, kind, names in (("detect", "a detector", DETECTORS), ("keypoints", "a pose network", POSES)):
            if backbone in names:
                rule = f"is {kind}, and the task is to classify"
                remedy = f"pass --task {task}, or one of the others that `condconv models` lists"
                raise argument_error("train", "model", config.model, rule, remedy)
        given = {
            "output_stride": output_stride(config, source),
            "drop_rate": config.dropout,
            "drop_path_rate": config.drop_path,
        }
        arguments = {"num_classes": len(source.classes), "in_chans": source.channels}
        return arguments | {name: value for name, value in given.items() if value}

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Cross-entropy with label smoothing; under Mixup the weighted mean of that with each of the two labels."""
        _, labels, _, _, *mixed = batch
        smoothing = self.config.label_smoothing
        rare = None if self.class_weights is None else self.class_weights.to(output)
        if not mixed:
            return F.cross_entropy(output, labels, weight=rare, label_smoothing=smoothing)
        partners, weights = mixed
        first, second = (
            F.cross_entropy(output, target, weight=rare, label_smoothing=smoothing, reduction="none")
            for target in (labels, partners)
        )
        return (weights * first + (1 - weights) * second).mean()

    def averaged(self, outputs: Sequence[Any]) -> Tensor:
        """Logits (B, classes) whose softmax is the mean of the outputs' probabilities."""
        return torch.stack([output.float().softmax(dim=1) for output in outputs]).mean(dim=0).log()

    def measured(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Which images are right."""
        return {"train_accuracy": (output.argmax(dim=1) == batch[1]).float()}

    def meter(self, source: Source) -> nn.Module:
        """Loss without label smoothing, and accuracy."""
        return ClassificationMeter()

    def evaluator(self, source: Source, view: Samples) -> ClassificationEvaluator:
        """See `ClassificationEvaluator`."""
        assert isinstance(view, ImageView)
        return ClassificationEvaluator(source, view)

    def pictures(self, found: Mapping[str, Classified], source: Source) -> dict[str, bytes]:
        """The confusion matrices."""
        confusions = {f"{network}: {100 * each.score:.2f} %": each.confusion for network, each in found.items()}
        return {"confusion_matrix.png": confusion_matrix(confusions, source.classes)}

    def remarks(self, found: Mapping[str, Classified]) -> list[str]:
        """The accuracy under each condition, where the images are under some."""
        names = list(next(iter(found.values())).by_condition)
        if not names:
            return []
        head = [" | ".join(["| condition", *found]) + " |", "|:---" + "|---:" * len(found) + "|"]
        rows = []
        for name in names:
            shares = (f"{100 * each.by_condition[name]:.2f} %" for each in found.values())
            rows.append(" | ".join([f"| {name}", *shares]) + " |")
        return ["Accuracy by the condition that an image is under:", "\n".join([*head, *rows])]

    def headline(self, found: Classified) -> str:
        """See `evaluation_report.headline`."""
        return headline(found)

    def write_evaluation(self, out: str | Path, title: str, source: Source, found: Evaluation[Classified]) -> Path:
        """See `evaluation_report.write_evaluation`."""
        return write_evaluation(out, title, source, found)

    def check_output(self, out: Path) -> None:
        """See `prediction.check_format`."""
        check_format(out)

    def predict(self, request: Request) -> list[str]:
        """See `prediction.predict`."""
        return predict(self, request, partial(torch.softmax, dim=1))


class ClassificationMeter(nn.Module):
    """Cross-entropy and accuracy; places labelled `IGNORED` don't count."""

    def __init__(self) -> None:
        super().__init__()
        # By default NaN would be left out of the means.
        self.loss = MeanMetric(nan_strategy="disable")
        self.accuracy = MeanMetric()

    def reset(self) -> None:
        """Begin anew."""
        self.loss.reset()
        self.accuracy.reset()

    def update(self, output: Tensor, batch: Batch) -> None:
        """Add logits (B, classes)."""
        labels = batch[1]
        keep = labels != IGNORED
        if not bool(keep.any()):
            return
        self.loss.update(F.cross_entropy(output[keep].float(), labels[keep], reduction="none"))
        self.accuracy.update((output.argmax(dim=1) == labels)[keep].float())

    def compute(self) -> dict[str, float]:
        """The validation columns."""
        return {"val_loss": float(self.loss.compute()), "val_accuracy": float(self.accuracy.compute())}


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """What an image of each class weighs, (classes,): inverse to how many there are, 1 in the mean over the images."""
    counts = labels.bincount(minlength=classes)
    return len(labels) / (int(counts.count_nonzero()) * counts.clamp(min=1).float())


def output_stride(config: TrainConfig, source: Source) -> int | None:
    """The asked-for total stride, else that of small inputs, else None: as published, as with published weights.

    A layer with H x W output pixels pays about n / (H W) of its convolution for mixing, so below 64 pixels the network
    downsamples by 4, or by less where the last map would be smaller than 7 x 7.
    """
    if config.output_stride is not None:
        return config.output_stride
    side = min(source.image_size)
    if side >= SMALL_INPUT or config.pretrained == PUBLISHED:
        return None
    return next((stride for stride in SMALL_INPUT_STRIDES if side // stride >= SMALLEST_MAP), 1)


TASK = Classification
