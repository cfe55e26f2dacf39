"""Detection as a task: SSD over MobileNetV1, MultiBox loss, COCO's average precision, pictures with boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condconv.data import Source
from condconv.errors import argument_error
from condconv.evaluation.evaluate import Evaluation
from condconv.models.build import TORCHVISION
from condconv.models.specs import SPECS
from condconv.models.ssd import DETECTORS
from condconv.runs.config import TrainConfig
from condconv.tasks.base import OF_LABELS, Batch, Request, Samples, Task
from condconv.tasks.detect import SCORE
from condconv.tasks.detect.detectors import Detector, SSDetector, TorchvisionDetector
from condconv.tasks.detect.drawing import confusion_matrices, precision_recall, worst
from condconv.tasks.detect.evaluation_report import headline, table_by_class, write_evaluation
from condconv.tasks.detect.evaluator import Detected, DetectionEvaluator
from condconv.tasks.detect.meter import DetectionMeter
from condconv.tasks.detect.objects import Objects
from condconv.tasks.detect.opening import open_objects
from condconv.tasks.detect.prediction import detect_all
from condconv.tasks.detect.view import DetectionView, collate
from condconv.tasks.outputs import check_new_folder

_PRIOR = 0.01
"""Of each class, where the loss is a sigmoid: nearly all boxes are background."""
PRECISION = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")


class Detection(Task):
    """Images (B, C, H, W) → what the kind of `Detector` makes of them; batches are made of `DetectionSample`."""

    name = "detect"
    score = SCORE
    training_columns = ("train_class_loss", "train_box_loss")
    validation_columns: tuple[str, ...] = ("val_loss", *PRECISION)
    loss_title = "loss of classes and boxes"
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
        self.detector: Detector = SSDetector(config.detection_loss)
        if config.model.startswith(TORCHVISION):
            if config.detection_loss != "softmax":
                rule, remedy = f"is for SSD, and {config.model} brings its own losses", "leave it out"
                raise argument_error("train", "detection_loss", config.detection_loss, rule, remedy)
            self.detector = TorchvisionDetector()
        if not self.detector.has_val_loss:
            self.validation_columns = PRECISION
        self._measured: dict[str, Tensor] = {}

    def open(self, data: str, *, skip_bad: bool = False) -> Source:
        """See `opening.open_objects`."""
        return open_objects(data, skip_bad=skip_bad)

    def prepared(self, source: Source) -> Source:
        """Torchvision's detectors normalise by themselves."""
        source = super().prepared(source)
        if not self.config.model.startswith(TORCHVISION):
            return source
        return replace(source, mean=(0.0,) * source.channels, std=(1.0,) * source.channels)

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
        if model.startswith(TORCHVISION):
            return {"num_classes": len(source.classes)}
        if (SPECS[model].backbone if model in SPECS else model) not in DETECTORS:
            known = [name for name, spec in SPECS.items() if spec.backbone in DETECTORS]
            remedy = f"pass one of {', '.join([*DETECTORS, *known])}, {TORCHVISION}NAME, or leave it out"
            raise argument_error("train", "model", model, "does not detect", remedy)
        prior = {"class_prior": _PRIOR} if self.config.detection_loss == "focal" else {}
        return {"num_classes": len(source.classes), "in_chans": source.channels, **prior}

    def run(self, network: Callable[..., Any], batch: Batch) -> Any:
        """Objects are for training: a network in eval mode makes nothing of them."""
        return self.detector.run(network, batch[0], self._taught(batch))

    def _taught(self, batch: Batch) -> list[Objects]:
        """Boxes around crowds teach nothing."""
        return [each.kept(~each.crowd) for each in batch[1]]

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Classification and localisation."""
        parts = self.detector.losses(output, batch[0], self._taught(batch))
        self._measured = {
            "train_class_loss": parts.classification.detach(), "train_box_loss": parts.localisation.detach()
        }  # fmt: skip
        return parts.classification + parts.localisation

    def measured(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        """The parts of the loss that was computed last."""
        return self._measured

    def meter(self, source: Source) -> nn.Module:
        """Loss and average precision."""
        return DetectionMeter(source, self.detector, self.loss if self.detector.has_val_loss else None)

    def evaluator(self, source: Source, view: Samples) -> DetectionEvaluator:
        """See `DetectionEvaluator`."""
        return DetectionEvaluator(source, self.detector)

    def pictures(self, found: Mapping[str, Detected], source: Source) -> dict[str, bytes]:
        """Precision against recall, confusion, and the first network's images with the most mistakes."""
        first = next(iter(found.values()))
        return {
            "precision_recall.png": precision_recall(found),
            "confusion_matrix.png": confusion_matrices(found),
            "mistakes.png": worst(first, source.val.load),
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
        """See `outputs.check_new_folder`."""
        check_new_folder(out)

    def predict(self, request: Request) -> list[str]:
        """See `prediction.detect_all`."""
        return detect_all(self, self.detector, request)


TASK = Detection
