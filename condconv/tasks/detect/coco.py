"""Annotations in COCO's JSON, checked: every wrong entry is named, and refused or left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from condconv.limits import limit
from condconv.tasks.coco_json import checked_images, read_content
from condconv.tasks.detect.objects import ObjectImages, Objects, no_objects

SMALLEST = 1e-3
"""Sides below this, in pixels, are none."""


@dataclass
class Annotations:
    """One half of a data set: its images, its classes, and what is wrong, in words."""

    images: ObjectImages
    classes: tuple[str, ...]
    problems: list[str] = field(default_factory=list)


def find_coco(folder: Path, half: str) -> tuple[Path, Path] | None:
    """The annotations of a half and the folder of its images: `train.json` beside `train/`, or
    `annotations/instances_train*.json` beside `train*/`; None where there are none.
    """
    if (folder / f"{half}.json").is_file():
        return folder / f"{half}.json", folder / half if (folder / half).is_dir() else folder
    for path in sorted((folder / "annotations").glob(f"instances_{half}*.json")):
        name = path.stem.removeprefix("instances_")
        return path, folder / name if (folder / name).is_dir() else folder
    return None


def read_coco(path: Path, images: Path) -> Annotations:
    """Read a half. Entries that are wrong are in `problems`, and not among the objects.

    Category ids may have gaps; classes are in the order of the ids. An image without objects is one.

    Raises:
        DataError: no JSON of this kind, or nothing in it.
    """
    return checked(read_content(path), path, images)


def checked(content: dict[str, Any], path: Path, images: Path) -> Annotations:
    """A half in the form of COCO's JSON, from `path`, with its images in a folder; see `read_coco`."""
    names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
    label_of = {category: label for label, category in enumerate(sorted(names), 1)}
    files, sizes, problems = checked_images(content, path, images)
    known = {entry["id"] for entry in content["images"]}
    rows: dict[Any, list[tuple[list[float], int, float, bool]]] = {image: [] for image in files}
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry.get('id')}"
        image = entry.get("image_id")
        if image in rows:
            problem = _box_problem(entry, sizes[image], label_of)
            if problem is None:
                rows[image].append(_row(entry, sizes[image], label_of))
            else:
                problems.append(f"{where}: {problem}")
        elif image not in known:
            problems.append(f"{where}: of image {image!r}, which is not listed")
    most = limit("max_objects")
    for image in [image for image, found in rows.items() if len(found) > most]:
        problems.append(f"{path}: image {image}: {len(rows[image])} objects; the limit is CONDCONV_MAX_OBJECTS={most}")
        del rows[image], files[image]
    objects = [_objects(rows[image]) for image in files]
    classes = tuple(names[category] for category in sorted(names))
    return Annotations(ObjectImages(list(files.values()), objects), classes, problems)


def _box_problem(entry: Mapping[str, Any], size: tuple[float, float], label_of: Mapping[Any, int]) -> str | None:
    box = entry.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    if not numbers or not all(math.isfinite(value) for value in box):  # type: ignore[union-attr]
        return f"box {box} is not four finite numbers x, y, width, height"
    x, y, width, height = box  # type: ignore[misc]
    if entry.get("category_id") not in label_of:
        return f"category {entry.get('category_id')!r} is not listed"
    if width < SMALLEST or height < SMALLEST:
        return f"box {box} has no area"
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        return f"box {box} lies outside of its image of {size[0]:g} x {size[1]:g} pixels"
    return None


def _row(
    entry: Mapping[str, Any], size: tuple[float, float], label_of: Mapping[Any, int]
) -> tuple[list[float], int, float, bool]:
    """Box, cut at the image's edges, label, area, crowd."""
    x, y, width, height = (float(value) for value in entry["bbox"])
    box = [max(0.0, x), max(0.0, y), min(size[0], x + width), min(size[1], y + height)]
    area = float(entry.get("area") or width * height)
    return box, label_of[entry["category_id"]], area, bool(entry.get("iscrowd", 0))


def _objects(rows: list[tuple[list[float], int, float, bool]]) -> Objects:
    if not rows:
        return no_objects()
    boxes, labels, areas, crowd = zip(*rows, strict=True)
    return Objects(torch.tensor(boxes), torch.tensor(labels), torch.tensor(areas), torch.tensor(crowd))
