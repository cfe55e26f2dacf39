"""COCO's average precision of boxes, by faster-coco-eval: whole images of objects and detections in, numbers out."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from condconv.detection import Detections
from condconv.tasks.detect.objects import Objects

_STATISTICS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
_BEST_100 = 2
"""Place of 100 detections an image among COCO's limits 1, 10, 100."""


@dataclass(frozen=True)
class Precision:
    """On [0, 1]: the mean over classes and overlaps, and of each class; -1 is COCO's word for "no such object".

    `curves`: precision at overlap 0.5 over 101 recalls, (recalls, classes).
    """

    summary: dict[str, float]
    of_class: list[float]
    curves: np.ndarray


def average_precision(truths: Sequence[Objects], found: Sequence[Detections], classes: Sequence[str]) -> Precision:
    """Evaluate images, whose objects and detections have boxes in the same pixels.

    Without any detection all is 0 (-1 where there is no object of a kind).
    """
    from faster_coco_eval import COCO, COCOeval_faster  # slow to import, and detection alone needs it

    truth = COCO(annotations_of(truths, classes))
    detected = truth.loadRes(results_of(found) or _NOTHING)
    evaluation = COCOeval_faster(truth, detected, iouType="bbox", print_function=lambda *_: None)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # (overlaps, recalls, classes, areas, limits)
    of_all = precision[:, :, :, 0, _BEST_100]
    summary = dict(zip(_STATISTICS, (float(value) for value in evaluation.stats[:6]), strict=True))
    return Precision(summary, [_mean(of_all[:, :, label]) for label in range(len(classes))], of_all[0])


def annotations_of(truths: Sequence[Objects], classes: Sequence[str]) -> dict[str, Any]:
    """Objects as COCO's JSON has them; images are numbered from 1."""
    annotations = [
        {
            "id": 0, "image_id": image, "category_id": label, "bbox": _xywh(box), "area": area, "iscrowd": int(crowd),
        }
        for image, objects in enumerate(truths, 1)
        for box, label, area, crowd in zip(*(part.tolist() for part in objects), strict=True)
    ]  # fmt: skip
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return {
        "info": {},
        "images": [{"id": image} for image in range(1, len(truths) + 1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, 1)],
    }


def results_of(found: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections as COCO's results have them."""
    return [
        {"image_id": image, "category_id": label, "bbox": _xywh(box), "score": score}
        for image, detections in enumerate(found, 1)
        for box, score, label in zip(*(part.tolist() for part in detections), strict=True)
    ]


_NOTHING = [{"image_id": 1, "category_id": 1, "bbox": [-2.0, -2.0, 1.0, 1.0], "score": 0.0}]
"""One that matches nothing: no detection at all is an error to COCO's code."""


def _xywh(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
