"""What a detector finds on the validation images, image by image, and its average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condconv.data import Source
from condconv.detection import Detections
from condconv.tasks.base import counted
from condconv.tasks.detect.average_precision import Precision, average_precision
from condconv.tasks.detect.detectors import Detector
from condconv.tasks.detect.objects import Objects


def found_in(detector: Detector, output: Any, sizes: Tensor, image_size: tuple[int, int]) -> list[Detections]:
    """A batch's detections in the pixels of the images as stored, on the CPU; sizes (B, 2) as H, W."""
    found = detector.found(output, image_size)
    return [
        Detections(each.boxes.cpu() * _factor(size, image_size), each.scores.cpu(), each.labels.cpu())
        for each, size in zip(found, sizes.tolist(), strict=True)
    ]


def as_stored(objects: Objects, size: Sequence[int], image_size: tuple[int, int]) -> Objects:
    """Objects in the pixels of the image as stored, on the CPU."""
    objects = Objects(*(part.cpu() for part in objects))
    return objects._replace(boxes=objects.boxes * _factor(size, image_size))


def _factor(size: Sequence[int], image_size: tuple[int, int]) -> Tensor:
    height, width = (have / want for have, want in zip(size, image_size, strict=True))
    return torch.tensor([width, height, width, height])


@dataclass(frozen=True)
class Detected:
    """`places` of the images that count, their objects and detections in the same order, and the precision."""

    classes: tuple[str, ...]
    places: list[int]
    truths: list[Objects]
    detections: list[Detections]
    precision: Precision

    @property
    def score(self) -> float:
        """Mean average precision."""
        return self.precision.summary["map"]


class DetectionEvaluator:
    """Collects objects and detections."""

    def __init__(self, source: Source, detector: Detector) -> None:
        self.detector = detector
        self.classes = source.classes
        self.image_size = source.image_size
        self.places: list[int] = []
        self.truths: list[Objects] = []
        self.detections: list[Detections] = []

    def add(self, output: Any, batch: Sequence[Any]) -> None:
        """Add what the network made of a batch."""
        _, objects, places, _, sizes = batch
        found = found_in(self.detector, output, sizes, self.image_size)
        for index in counted(batch):
            self.places.append(int(places[index]))
            self.truths.append(as_stored(objects[index], sizes[index].tolist(), self.image_size))
            self.detections.append(found[index])

    def found(self) -> Detected:
        """See `Detected`."""
        precision = average_precision(self.truths, self.detections, self.classes)
        return Detected(self.classes, self.places, self.truths, self.detections, precision)
