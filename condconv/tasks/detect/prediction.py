"""Detections of any images: COCO's JSON, a table, and the images with boxes drawn."""

from __future__ import annotations

from torch import Tensor

from condconv.detection import Detections
from condconv.tasks.base import Request, Task
from condconv.tasks.detect.detectors import Detector
from condconv.tasks.detect.drawing import with_boxes
from condconv.tasks.detect.evaluator import found_in
from condconv.tasks.located import Answer, locate_all


def detect_all(task: Task, detector: Detector, request: Request) -> list[str]:
    """Detect in the validation images of a source; see `condconv.tasks.located.locate_all`."""
    source = request.source

    def answer(image: Tensor, detections: Detections) -> Answer:
        entries, rows = [], []
        for box, score, label in zip(*(part.tolist() for part in detections), strict=True):
            x1, y1, x2, y2 = box
            entries.append({"category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
            rows.append((source.classes[label - 1], f"{score:.6f}", *(f"{value:.2f}" for value in box)))
        return Answer(entries, rows, with_boxes(image, detections, source.classes))

    return locate_all(
        task, request, "detections", ("class", "score", "x1", "y1", "x2", "y2"),
        lambda output, batch: found_in(detector, output, batch[4], source.image_size), answer,
    )  # fmt: skip
