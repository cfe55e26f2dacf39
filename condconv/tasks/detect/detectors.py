"""What the task asks of a detector: how it is run, what its losses are, what it found. One class for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from condconv.detection import Detections, FocalLoss, MultiBoxLoss, MultiBoxLosses, detect
from condconv.models.ssd import ssd_anchors
from condconv.tasks.detect.objects import Objects

SCORE_THRESHOLD, CANDIDATES = 0.001, 1000
"""Low and many, since average precision is about all detections; what is drawn is chosen later."""

_OF_BOXES = ("bbox_regression", "bbox_ctrness")
"""Losses of torchvision's that are about boxes, beside those with "box_reg" in their names."""


class Detector(Protocol):
    """One kind of detectors."""

    has_val_loss: bool
    """Whether a network in eval mode says enough for the loss."""

    def run(self, network: Callable[..., Any], images: Tensor, objects: Sequence[Objects]) -> Any:
        """The network's output for images (B, C, H, W); the objects are what it is taught."""

    def losses(self, output: Any, images: Tensor, objects: Sequence[Objects]) -> MultiBoxLosses:
        """Both parts of the loss."""

    def found(self, output: Any, image_size: tuple[int, int]) -> list[Detections]:
        """The detections of each image, in the pixels of what the network got."""


class SSDetector:
    """`condconv.models.SSD`, trained by one of its two losses, which says what its scores are."""

    has_val_loss = True

    def __init__(self, loss: str) -> None:
        self.loss = FocalLoss() if loss == "focal" else MultiBoxLoss()
        self.scores = "sigmoid" if loss == "focal" else "softmax"

    def run(self, network: Callable[..., Any], images: Tensor, objects: Sequence[Objects]) -> Any:
        """See `Detector.run`."""
        return network(images)

    def losses(self, output: Any, images: Tensor, objects: Sequence[Objects]) -> MultiBoxLosses:
        """See `Detector.losses`."""
        image_size = (images.shape[2], images.shape[3])
        boxes, labels = [each.boxes for each in objects], [each.labels for each in objects]
        losses: MultiBoxLosses = self.loss(output, ssd_anchors(image_size).to(images.device), boxes, labels, image_size)
        return losses

    def found(self, output: Any, image_size: tuple[int, int]) -> list[Detections]:
        """See `Detector.found`."""
        anchors = ssd_anchors(image_size).to(output.box_offsets.device)
        return detect(
            output, anchors, image_size, score_threshold=SCORE_THRESHOLD, max_candidates=CANDIDATES, scores=self.scores
        )


class TorchvisionDetector:
    """torchvision's: losses in training mode, detections in eval mode."""

    has_val_loss = False

    def run(self, network: Callable[..., Any], images: Tensor, objects: Sequence[Objects]) -> Any:
        """See `Detector.run`."""
        targets = [{"boxes": each.boxes.to(images), "labels": each.labels.to(images.device)} for each in objects]
        return network(list(images), targets)

    def losses(self, output: Any, images: Tensor, objects: Sequence[Objects]) -> MultiBoxLosses:
        """See `Detector.losses`; those of proposals count with those of detections."""
        boxes = [value for name, value in output.items() if "box_reg" in name or name in _OF_BOXES]
        classes = [value for name, value in output.items() if "box_reg" not in name and name not in _OF_BOXES]
        return MultiBoxLosses(torch.stack(classes).sum(), torch.stack(boxes).sum())

    def found(self, output: Any, image_size: tuple[int, int]) -> list[Detections]:
        """See `Detector.found`."""
        return [Detections(each["boxes"], each["scores"], each["labels"]) for each in output]
