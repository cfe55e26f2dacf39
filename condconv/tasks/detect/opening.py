"""Data sets of objects: annotations of COCO, YOLO or Pascal VOC beside their images."""

from __future__ import annotations

from pathlib import Path

from condconv.data import Source
from condconv.errors import DataError
from condconv.tasks.coco_json import refuse
from condconv.tasks.detect.coco import Annotations, checked, find_coco, read_coco
from condconv.tasks.detect.yolo_voc import find_yolo, is_voc, voc_content, yolo_content

SIDE = 300
"""Side that images are brought to, as in SSD's published networks."""


def open_objects(data: str, *, skip_bad: bool = False) -> Source:
    """Open a folder with `train.json` and `val.json` beside `train/` and `val/`, or `annotations/instances_*.json`, or
    one of YOLO or Pascal VOC.

    What is wrong in the annotations is refused, or with `skip_bad` left out and listed.

    Raises:
        DataError: no such folder or annotations, something wrong in them, or halves with other classes.
    """
    folder = Path(data).expanduser()
    train, val = (read_half(folder, half) for half in ("train", "val"))
    if train.classes != val.classes:
        raise DataError(
            f"{folder}: the training set has the classes {', '.join(train.classes)}, and the validation set has "
            f"{', '.join(val.classes)}; they must be the same, in the same order"
        )
    problems = [*train.problems, *val.problems]
    refuse(problems, folder, skip_bad=skip_bad)
    if not len(train.images) or not len(val.images):
        raise DataError(f"{folder}: no image is left in one of its halves; first: {problems[0]}")
    return Source(
        folder.name, train.images, val.images, train.classes, 3, (SIDE, SIDE), native=False, flip=True,
        mean=(0.5,) * 3, std=(0.5,) * 3, skipped=tuple(problems),
    )  # fmt: skip


def read_half(folder: Path, half: str) -> Annotations:
    """The half "train" or "val" of a folder. Raises `DataError` where there is none."""
    found = find_coco(folder, half)
    if found is not None:
        return read_coco(*found)
    yolo = find_yolo(folder)
    if yolo is not None:
        content, images = yolo_content(yolo, half)
        return checked(content, yolo, images)
    if is_voc(folder, half):
        content, images = voc_content(folder, half)
        return checked(content, folder / "Annotations", images)
    raise DataError(
        f"{folder}: no annotations of a {half} half in it; expected {half}.json beside {half}/, or "
        f"annotations/instances_{half}*.json (COCO), data.yaml (YOLO), or ImageSets/Main/{half}.txt (Pascal VOC)"
    )
