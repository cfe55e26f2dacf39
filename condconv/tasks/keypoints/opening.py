"""Data sets of joints: COCO's JSON, or a table of DeepLabCut, beside the images."""

from __future__ import annotations

from pathlib import Path

from condconv.data import Source
from condconv.data.decoding import normalisation
from condconv.errors import DataError
from condconv.tasks.coco_json import refuse
from condconv.tasks.keypoints.coco import Annotations, checked, find_keypoints, read_keypoints
from condconv.tasks.keypoints.deeplabcut import find_table, table_content

SIZE = (256, 192)
"""Height and width of the published networks' input."""


def open_keypoints(data: str, *, skip_bad: bool = False) -> Source:
    """Open a folder with `annotations/*keypoints_train*.json`, `train.json` or `CollectedData*.csv`.

    The source's classes are the names of the joints. What is wrong in the annotations is refused, or with `skip_bad`
    left out and listed.

    Raises:
        DataError: no such folder or annotations, something wrong in them, or halves with other joints.
    """
    folder = Path(data).expanduser()
    train, val = (read_half(folder, half) for half in ("train", "val"))
    if train.joints != val.joints:
        raise DataError(f"{folder}: the training set has the joints {train.joints}, the validation set {val.joints}")
    problems = [*train.problems, *val.problems]
    refuse(problems, folder, skip_bad=skip_bad)
    if not len(train.images) or not len(val.images):
        raise DataError(f"{folder}: one of its halves has no instance with a labelled joint")
    mean, std = normalisation(3)
    return Source(
        folder.name, train.images, val.images, train.joints, 3, SIZE, native=False, flip=False, mean=mean, std=std,
        skipped=tuple(problems),
    )  # fmt: skip


def read_half(folder: Path, half: str) -> Annotations:
    """The half "train" or "val" of a folder. Raises `DataError` where there is none."""
    found = find_keypoints(folder, half)
    if found is not None:
        return read_keypoints(*found)
    table = find_table(folder)
    if table is not None:
        return checked(table_content(table, half), table, folder)
    raise DataError(
        f"{folder}: no joints of a {half} half in it; expected annotations/*keypoints_{half}*.json or {half}.json "
        "(COCO), or CollectedData*.csv (DeepLabCut)"
    )
