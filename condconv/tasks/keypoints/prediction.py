"""Joints of any images, each of which is one instance: COCO's JSON, a table, and the images with joints drawn."""

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
from condconv.tasks.keypoints.drawing import with_joints
from condconv.tasks.keypoints.evaluator import found_in
from condconv.tasks.keypoints.scores import instance_score
from condconv.tasks.outputs import output_names

_COLUMNS = ("image", "joint", "x", "y", "score")


@torch.inference_mode()
def locate_all(task: Task, request: Request) -> list[str]:
    """Locate the joints in the validation images of a source and write the folder: whole, or not at all.

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
            images, _, places, decoded, to_image, *_ = batch
            found = found_in(task.run(network, [images.to(request.device), *batch[1:]]), to_image)
            for place, whole, joints in zip(places.tolist(), decoded.tolist(), found, strict=True):
                where = source.val.where(place)
                if not whole:
                    damaged.append(where)
                    continue
                points = joints.flatten().tolist()
                results.append({"file_name": where, "keypoints": points, "score": instance_score(joints)})
                for name, (x, y, score) in zip(source.classes, joints.tolist(), strict=True):
                    table.writerow(cells((where, name, f"{x:.2f}", f"{y:.2f}", f"{score:.6f}")))
                picture = with_joints(source.val.load(place), joints, source.classes)
                (folder.path / names[place]).write_bytes(picture)
            request.progress(int(places[-1]) + 1, len(source.val))
        (folder.path / "keypoints.json").write_text(json.dumps(results), encoding="utf-8")
        (folder.path / "keypoints.csv").write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
    return damaged
