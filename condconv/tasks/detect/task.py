"""Detection as a task: SSD over MobileNetV1, MultiBox loss, COCO's average precision, pictures with boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condconv.data import Source
from condconv.detection import MultiBoxLoss
from condconv.errors import argument_error
from condconv.evaluation.evaluate import Evaluation
from condconv.models.specs import SPECS
from condconv.models.ssd import DETECTORS, ssd_anchors
from condconv.runs.config import TrainConfig
from condconv.tasks.base import OF_LABELS, Batch, Request, Samples, Task
from condconv.tasks.detect import SCORE
from condconv.tasks.detect.drawing import best_and_worst, precision_recall
from condconv.tasks.detect.evaluation_report import headline, table_by_class, write_evaluation
from condconv.tasks.detect.evaluator import Detected, DetectionEvaluator
from condconv.tasks.detect.meter import DetectionMeter
from condconv.tasks.detect.opening import open_objects
from condconv.tasks.detect.prediction import check_folder, detect_all
from condconv.tasks.detect.view import DetectionView, collate


class Detection(Task):
    """Images (B, C, H, W) → `SSDOutput`; batches are made of `DetectionSample`."""

    name = "detect"
    score = SCORE
    training_columns = ("train_class_loss", "train_box_loss")
    validation_columns = ("val_loss", "map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    loss_title = "MultiBox loss"
    unused = (
        *OF_LABELS,  # of classes of whole images
        "num_classes", "random_crop", "auto_augment", "conditions", "mixup", "label_smoothing", "dropout", "drop_path",
        "output_stride", "degradations",
    )  # fmt: skip
    predictions = "detections"
    left_out = "it has no detections"
    evaluates = "average precision by class, precision against recall, mistakes"
    collate = staticmethod(collate)

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.losses = MultiBoxLoss()
        self._measured: dict[str, Tensor] = {}

    def open(self, data: str, *, skip_bad: bool = False) -> Source:
        """See `opening.open_objects`."""
        return open_objects(data, skip_bad=skip_bad)

    def view(self, source: Source, *, train: bool, skip_bad: bool = False) -> Samples:
        """See `DetectionView`."""
        return DetectionView(source, train=train, seed=self.config.seed, skip_bad=skip_bad)

    def about(self, source: Source) -> str:
        """How many classes."""
        return f"objects of {len(source.classes)} classes"

    def groups(self, source: Source) -> tuple[str, ...]:
        """The classes; an image is of the class of most of its objects."""
        return source.classes

    def group_of(self, batch: Batch) -> Tensor:
        """The class of most objects; none where there are no objects."""
        images, objects, *_ = batch
        most = [int(each.labels.bincount().argmax()) - 1 if len(each.labels) else -1 for each in objects]
        return images.new_tensor(most).long()

    def recipe(self, source: Source) -> str:
        """The recipe of this task."""
        return "detect"

    def network_arguments(self, source: Source) -> dict[str, Any]:
        """Classes and channels."""
        model = self.config.model
        if (SPECS[model].backbone if model in SPECS else model) not in DETECTORS:
            known = [name for name, spec in SPECS.items() if spec.backbone in DETECTORS]
            remedy = f"pass one of {', '.join([*DETECTORS, *known])}, or leave it out"
            raise argument_error("train", "model", model, "does not detect", remedy)
        return {"num_classes": len(source.classes), "in_chans": source.channels}

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Classification and localisation; boxes around crowds teach nothing."""
        images, objects, *_ = batch
        image_size = (images.shape[2], images.shape[3])
        taught = [each.kept(~each.crowd) for each in objects]
        parts = self.losses(
            output, ssd_anchors(image_size).to(images.device), [each.boxes for each in taught],
            [each.labels for each in taught], image_size,
        )  # fmt: skip
        self._measured = {
            "train_class_loss": parts.classification.detach(), "train_box_loss": parts.localisation.detach()
        }  # fmt: skip
        return parts.classification + parts.localisation

    def measured(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        """The parts of the loss that was computed last."""
        return self._measured

    def meter(self, source: Source) -> nn.Module:
        """Loss and average precision."""
        return DetectionMeter(source, self.loss)

    def evaluator(self, source: Source, view: Samples) -> DetectionEvaluator:
        """See `DetectionEvaluator`."""
        return DetectionEvaluator(source)

    def pictures(self, found: Mapping[str, Detected], source: Source) -> dict[str, bytes]:
        """Precision against recall, and images with boxes."""
        first = next(iter(found.values()))
        return {
            "precision_recall.png": precision_recall(found),
            "detections.png": best_and_worst(first, source.val.load),
        }

    def remarks(self, found: Mapping[str, Detected]) -> list[str]:
        """The table by class."""
        return ["Average precision by class and size of the object:", table_by_class(found)]

    def headline(self, found: Detected) -> str:
        """See `evaluation_report.headline`."""
        return headline(found)

    def write_evaluation(self, out: str | Path, title: str, source: Source, found: Evaluation[Detected]) -> Path:
        """See `evaluation_report.write_evaluation`."""
        return write_evaluation(out, title, source, found)

    def check_output(self, out: Path) -> None:
        """See `prediction.check_folder`."""
        check_folder(out)

    def predict(self, request: Request) -> list[str]:
        """See `prediction.detect_all`."""
        return detect_all(self, request)


TASK = Detection
