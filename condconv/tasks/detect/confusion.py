"""Which class an object is taken for, by what overlaps it most; background is one more class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from condconv.detection import Detections
from condconv.tasks.detect.objects import Objects

BACKGROUND = "background"
SHOWN_SCORE, SAME_OBJECT = 0.25, 0.5
"""Detections that count, and from what overlap on one is an object's."""


def shown(detections: Detections) -> Detections:
    """Those that are sure enough to be drawn and counted."""
    keep = detections.scores >= SHOWN_SCORE
    return Detections(*(part[keep] for part in detections))


def confusion(truths: Sequence[Objects], found: Sequence[Detections], classes: int) -> Tensor:
    """Count objects (rows) by the class of their detection (columns): int64 (classes + 1, classes + 1).

    Object and detection belong together by overlap, whatever their classes, the best pairs first and each once. The
    last column are objects without a detection, the last row detections without an object. Crowds count for nothing.
    """
    counts = torch.zeros(classes + 1, classes + 1, dtype=torch.int64)
    for truth, detections in zip(truths, found, strict=True):
        truth, detections = truth.kept(~truth.crowd), shown(detections)
        true, predicted = (labels - 1 for labels in (truth.labels, detections.labels))
        overlap = box_iou(truth.boxes, detections.boxes)
        free_objects, free_detections = set(range(len(true))), set(range(len(predicted)))
        while free_objects and free_detections and float(overlap.max()) >= SAME_OBJECT:
            row, column = divmod(int(overlap.argmax()), len(predicted))
            counts[true[row], predicted[column]] += 1
            overlap[row], overlap[:, column] = -1, -1
            free_objects.discard(row)
            free_detections.discard(column)
        for row in free_objects:
            counts[true[row], classes] += 1
        for column in free_detections:
            counts[classes, predicted[column]] += 1
    return counts
