"""Keypoints as a task: one instance at a time, heatmaps, COCO's average precision, pictures with joints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condconv.data import Source
from condconv.errors import argument_error
from condconv.evaluation.evaluate import Evaluation
from condconv.models.pose import POSES
from condconv.models.specs import SPECS
from condconv.tasks.base import OF_LABELS, Batch, Request, Samples, Task
from condconv.tasks.keypoints import SCORE
from condconv.tasks.keypoints.drawing import distances_by_joint, worst
from condconv.tasks.keypoints.evaluation_report import headline, table_by_joint, write_evaluation
from condconv.tasks.keypoints.evaluator import KeypointEvaluator, Located
from condconv.tasks.keypoints.heatmaps import encode, unmirrored
from condconv.tasks.keypoints.joints import mirror_of
from condconv.tasks.keypoints.meter import KeypointMeter
from condconv.tasks.keypoints.opening import open_keypoints
from condconv.tasks.keypoints.prediction import locate_joints
from condconv.tasks.keypoints.scores import STATISTICS
from condconv.tasks.keypoints.view import KeypointView
from condconv.tasks.outputs import check_new_folder

_SMALL, _LARGE = 32.0**2, 96.0**2
_MULTIPLE = 32
"""Of the input's sides: the backbones' total stride."""


class Keypoints(Task):
    """Inputs (B, C, H, W) → heatmaps (B, K, H/4, W/4); batches are made of `KeypointSample`."""

    name = "keypoints"
    score = SCORE
    training_columns = ()
    validation_columns = ("val_loss", *STATISTICS, "pck", "pixel_error")
    loss_title = "half the mean squared error of the heatmaps"
    unused = (
        *OF_LABELS,  # of classes of whole images
        "num_classes", "random_crop", "auto_augment", "conditions", "mixup", "label_smoothing", "dropout", "drop_path",
        "output_stride", "degradations", "detection_loss",
    )  # fmt: skip
    predictions = "keypoints"
    left_out = "it has no joints"
    evaluates = "average precision, distances by joint, the worst instances"

    def open(self, data: str, *, skip_bad: bool = False) -> Source:
        """See `opening.open_keypoints`."""
        return open_keypoints(data, skip_bad=skip_bad)

    def prepared(self, source: Source) -> Source:
        """Inputs as high as `--input-size`, and three quarters as wide, as far as both are multiples of 32."""
        source = source.limited(self.config.limit_train, self.config.limit_val)
        height = self.config.input_size
        if height is None:
            return source
        if height % _MULTIPLE:
            rule, remedy = f"must be a multiple of {_MULTIPLE}", f"pass {max(1, height // _MULTIPLE) * _MULTIPLE}"
            raise argument_error("train", "input_size", height, rule, remedy)
        return replace(source, image_size=(height, _MULTIPLE * max(1, round(0.75 * height / _MULTIPLE))))

    def view(self, source: Source, *, train: bool, skip_bad: bool = False) -> Samples:
        """See `KeypointView`."""
        return KeypointView(source, train=train, seed=self.config.seed, skip_bad=skip_bad)

    def about(self, source: Source) -> str:
        """How many joints, and whether they are mirrored."""
        mirrored = "" if mirror_of(source.classes) is not None else ", not mirrored (no names with left and right)"
        return f"{len(source.classes)} joints{mirrored}"

    def groups(self, source: Source) -> tuple[str, ...]:
        """COCO's sizes of an instance."""
        return ("small", "medium", "large")

    def group_of(self, batch: Batch) -> Tensor:
        """The size by the area; none for blanks."""
        areas = batch[5]
        sizes: Tensor = (areas >= _SMALL).long() + (areas >= _LARGE).long()
        return sizes.masked_fill(areas <= 0, -1)

    def recipe(self, source: Source) -> str:
        """The recipe of this task."""
        return "keypoints"

    def network_arguments(self, source: Source) -> dict[str, Any]:
        """One heatmap for each joint."""
        model = self.config.model
        if (SPECS[model].backbone if model in SPECS else model) not in POSES:
            known = [name for name, spec in SPECS.items() if spec.backbone in POSES]
            remedy = f"pass one of {', '.join([*POSES, *known])}, or leave it out"
            raise argument_error("train", "model", model, "does not locate joints", remedy)
        return {"num_classes": len(source.classes), "in_chans": source.channels}

    def run(self, network: Callable[..., Any], batch: Batch) -> Tensor:
        """The heatmaps; in eval mode their mean with the mirrored input's, where joints have left and right."""
        images, mirror = batch[0], batch[6][0]
        heatmaps: Tensor = network(images)
        mirrors = bool((mirror != mirror.sort().values).any())
        if not mirrors or getattr(network, "training", False):
            return heatmaps
        return (heatmaps + unmirrored(network(images.flip(3)), mirror.to(images.device))) / 2

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Half the squared error, mean over pixels, instances and joints; joints that do not count are 0."""
        images, joints, *_ = batch
        wanted, counts = encode(joints, (images.shape[2], images.shape[3]))
        return 0.5 * ((output.float() - wanted).square() * counts[..., None, None]).mean()

    def measured(self, output: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Nothing besides the loss."""
        return {}

    def meter(self, source: Source) -> nn.Module:
        """Loss, average precision and distances."""
        return KeypointMeter(source, self.loss)

    def evaluator(self, source: Source, view: Samples) -> KeypointEvaluator:
        """See `KeypointEvaluator`."""
        return KeypointEvaluator(source)

    def pictures(self, found: Mapping[str, Located], source: Source) -> dict[str, bytes]:
        """Distances by joint, and the worst instances of the first network."""
        first = next(iter(found.values()))
        return {"distances.png": distances_by_joint(found), "worst.png": worst(first, source.val.load)}

    def remarks(self, found: Mapping[str, Located]) -> list[str]:
        """The numbers, and the table by joint."""
        lines = "\n".join(f"* {network}: {headline(each)}" for network, each in found.items())
        return [lines, "Median distance in pixels by joint:", table_by_joint(found)]

    def headline(self, found: Located) -> str:
        """See `evaluation_report.headline`."""
        return headline(found)

    def write_evaluation(self, out: str | Path, title: str, source: Source, found: Evaluation[Located]) -> Path:
        """See `evaluation_report.write_evaluation`."""
        return write_evaluation(out, title, source, found)

    def check_output(self, out: Path) -> None:
        """See `outputs.check_new_folder`."""
        check_new_folder(out)

    def predict(self, request: Request) -> list[str]:
        """See `prediction.locate_joints`."""
        return locate_joints(self, request)


TASK = Keypoints
