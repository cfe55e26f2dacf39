"""Joints of any images, each of which is one instance: COCO's JSON, a table, and the images with joints drawn."""

from __future__ import annotations

from torch import Tensor

from condconv.tasks.base import Request, Task
from condconv.tasks.keypoints.drawing import with_joints
from condconv.tasks.keypoints.evaluator import found_in
from condconv.tasks.keypoints.scores import instance_score
from condconv.tasks.located import Answer, locate_all


def locate_joints(task: Task, request: Request) -> list[str]:
    """Locate the joints in the validation images of a source; see `condconv.tasks.located.locate_all`."""
    names = request.source.classes

    def answer(image: Tensor, joints: Tensor) -> Answer:
        entry = {"keypoints": joints.flatten().tolist(), "score": instance_score(joints)}
        located = zip(names, joints.tolist(), strict=True)
        rows = [(name, f"{x:.2f}", f"{y:.2f}", f"{score:.6f}") for name, (x, y, score) in located]
        return Answer([entry], rows, with_joints(image, joints, names))

    columns = ("joint", "x", "y", "score")
    return locate_all(task, request, "keypoints", columns, lambda output, batch: found_in(output, batch[4]), answer)
