"""Joints in COCO's JSON, checked: every wrong entry is named, and refused or left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from condconv.errors import DataError
from condconv.tasks.coco_json import checked_images, read_content
from condconv.tasks.keypoints.instances import Instance, InstanceImages

_HULL_MARGIN = 0.15
"""Of the box of an instance that has none: the hull of its joints, and so much on each side."""


@dataclass
class Annotations:
    """One half of a data set: its instances, the names of the joints, and what is wrong, in words."""

    images: InstanceImages
    joints: tuple[str, ...]
    problems: list[str] = field(default_factory=list)


def find_keypoints(folder: Path, half: str) -> tuple[Path, Path] | None:
    """The annotations of a half and the folder of its images: `annotations/*keypoints_train*.json` beside `train*/`, or
    `train.json` beside `train/`; None where there are none.
    """
    for path in sorted((folder / "annotations").glob(f"*keypoints_{half}*.json")):
        name = path.stem.partition("keypoints_")[2]
        return path, folder / name if (folder / name).is_dir() else folder
    if (folder / f"{half}.json").is_file():
        return folder / f"{half}.json", folder / half if (folder / half).is_dir() else folder
    return None


def read_keypoints(path: Path, images: Path) -> Annotations:
    """Read a half. Wrong entries are in `problems`; crowds and instances without a labelled joint are left out.

    Raises:
        DataError: no JSON of this kind, nothing in it, or not one category with names of joints.
    """
    return checked(read_content(path), path, images)


def checked(content: Mapping[str, Any], path: Path, images: Path) -> Annotations:
    """A half in the form of COCO's JSON, from `path`, with its images in a folder; see `read_keypoints`."""
    with_joints = [entry for entry in content["categories"] if entry.get("keypoints")]
    if len(with_joints) != 1:
        raise DataError(
            f"{path}: {len(with_joints)} categories have names of joints (`keypoints`); exactly one must, since a "
            "network has one set of them"
        )
    joints, category = tuple(map(str, with_joints[0]["keypoints"])), with_joints[0]["id"]
    files, _, problems = checked_images(content, path, images)
    order = {image: number for number, image in enumerate(files)}
    known = {entry["id"] for entry in content["images"]}
    found: list[Path] = []
    instances: list[Instance] = []
    for entry in content["annotations"]:
        if entry.get("category_id") != category or entry.get("iscrowd") or not entry.get("num_keypoints", 1):
            continue
        image = entry.get("image_id")
        problem = f"of image {image!r}, which is not listed" if image not in known else _problem(entry, len(joints))
        if problem is not None:
            problems.append(f"{path}: annotation {entry.get('id')}: {problem}")
        elif image in files:
            instance = _instance(entry, order[image])
            if bool((instance.joints[:, 2] > 0).any()):
                found.append(files[image])
                instances.append(instance)
    return Annotations(InstanceImages(found, instances), joints, problems)


def _problem(entry: Mapping[str, Any], joints: int) -> str | None:
    values = entry.get("keypoints")
    if not _numbers(values, 3 * joints):
        return f"keypoints are not {3 * joints} finite numbers, x, y and visibility of each of the {joints} joints"
    assert values is not None
    if any(visibility not in (0, 1, 2) for visibility in values[2::3]):
        return "a visibility is none of 0 (not labelled), 1 (hidden) and 2 (seen)"
    box = entry.get("bbox")
    if box is not None and not (_numbers(box, 4) and box[2] > 0 and box[3] > 0):
        return f"box {box} is not x, y, width, height with an area"
    return None


def _numbers(values: Any, length: int) -> bool:
    listed = isinstance(values, list) and len(values) == length
    return listed and all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _instance(entry: Mapping[str, Any], image: int) -> Instance:
    joints = torch.tensor(entry["keypoints"], dtype=torch.float32).reshape(-1, 3)
    box = torch.tensor(entry.get("bbox") or hull(joints[joints[:, 2] > 0].tolist()), dtype=torch.float32)
    return Instance(joints, box, float(entry.get("area") or box[2] * box[3]), image)


def hull(points: Sequence[Sequence[float]]) -> list[float]:
    """The box x, y, width, height around points (x, y, …), with a margin; of at least a pixel."""
    if not points:
        return [0.0, 0.0, 1.0, 1.0]
    x, y = ([point[axis] for point in points] for axis in (0, 1))
    width, height = max(1.0, max(x) - min(x)), max(1.0, max(y) - min(y))
    margin = (_HULL_MARGIN * width, _HULL_MARGIN * height)
    return [min(x) - margin[0], min(y) - margin[1], width + 2 * margin[0], height + 2 * margin[1]]
