"""Detections of any images: COCO's JSON, a table, and the images with boxes drawn."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import torch

from condconv.evaluation.evaluate import evaluation_loader
from condconv.files import whole_folder
from condconv.tables import cells
from condconv.tasks.base import Request, Task
from condconv.tasks.detect.detectors import Detector
from condconv.tasks.detect.drawing import with_boxes
from condconv.tasks.detect.evaluator import found_in
from condconv.tasks.outputs import output_names

_COLUMNS = ("image", "class", "score", "x1", "y1", "x2", "y2")


@torch.inference_mode()
def detect_all(task: Task, detector: Detector, request: Request) -> list[str]:
    """Detect on the validation images of a source and write the folder: whole, or not at all.

    Returns:
        The images that could not be decoded.

    Raises:
        ArgumentError: the folder cannot be written.
        DataError: an image cannot be decoded, and is not to be skipped.
    """
    source = request.source
    network = request.network.to(request.device).eval()
    names, damaged = output_names(source.val), []
    results: list[dict[str, Any]] = []
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    with whole_folder(request.out) as folder:
        view = task.view(source, train=False, skip_bad=request.skip_bad)
        for batch in evaluation_loader(view, task, request.batch_size, request.workers):
            images, _, places, decoded, sizes = batch
            output = task.run(network, [images.to(request.device), *batch[1:]])
            found = found_in(detector, output, sizes, source.image_size)
            for place, whole, detections in zip(places.tolist(), decoded.tolist(), found, strict=True):
                where = source.val.where(place)
                if not whole:
                    damaged.append(where)
                    continue
                for box, score, label in zip(*(part.tolist() for part in detections), strict=True):
                    x1, y1, x2, y2 = box
                    bbox = [x1, y1, x2 - x1, y2 - y1]
                    results.append({"file_name": where, "category_id": label, "bbox": bbox, "score": score})
                    name, corners = source.classes[label - 1], [f"{value:.2f}" for value in box]
                    table.writerow(cells((where, name, f"{score:.6f}", *corners)))
                picture = with_boxes(source.val.load(place), detections, source.classes)
                (folder.path / names[place]).write_bytes(picture)
            request.progress(int(places[-1]) + 1, len(source.val))
        (folder.path / "detections.json").write_text(json.dumps(results), encoding="utf-8")
        (folder.path / "detections.csv").write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
    return damaged
