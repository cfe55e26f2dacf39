"""Joints in the tables of DeepLabCut and Lightning Pose, brought into the form of COCO's JSON.

`CollectedData*.csv` has three header rows (scorer, bodyparts, coords), then a row for each image: its path, and x and y
of each joint, empty where it is not seen.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from PIL import Image

from condconv.errors import DataError
from condconv.reading import read_text
from condconv.tasks.keypoints.coco import hull

_VAL_SHARE = 3
"""One image of so many validates: the last ones, since neighbours in a film look alike."""


def find_table(folder: Path) -> Path | None:
    """The table of a folder; None where there is none."""
    return next(iter(sorted(folder.glob("CollectedData*.csv"))), None)


def table_content(path: Path, half: str) -> dict[str, Any]:
    """A half as COCO's JSON has it: the images are in the order of their names, and the last third of them validates.

    The box of an instance is the hull of its joints with a margin, its area that of the box.

    Raises:
        DataError: no such table, or a row that does not fit its header.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, "max_annotation_bytes"))))
        starts, joints = _header(rows)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a table of joints with the rows scorer, bodyparts, coords ({error})") from error
    body = sorted((row for row in rows[3:] if any(row)), key=lambda row: row[:starts])
    first_val = len(body) - len(body) // _VAL_SHARE
    content: dict[str, Any] = {"categories": [{"id": 1, "name": "object", "keypoints": joints}]}
    content |= {"images": [], "annotations": []}
    for number, row in enumerate(body[:first_val] if half == "train" else body[first_val:], 1):
        name, values = "/".join(filter(None, row[:starts])), row[starts:]
        if len(values) != 2 * len(joints):
            raise DataError(f"{path}: {name}: {len(values)} numbers for {len(joints)} joints; expected x and y of each")
        width, height = _size(path.parent / name)
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        points = [_joint(path, name, values[2 * joint : 2 * joint + 2]) for joint in range(len(joints))]
        box = hull([point for point in points if point[2]])
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "keypoints": sum(points, []), "bbox": box,
             "area": box[2] * box[3], "num_keypoints": sum(point[2] > 0 for point in points)}
        )  # fmt: skip
    return content


def _header(rows: list[list[str]]) -> tuple[int, list[str]]:
    """In which column the numbers start, and the joints' names."""
    if len(rows) < 4 or "x" not in rows[2]:
        raise ValueError("fewer than four rows, or no column x in the third")
    starts = rows[2].index("x")
    return starts, rows[1][starts::2]


def _joint(path: Path, name: str, cells: list[str]) -> list[float]:
    try:
        x, y = (float(cell) if cell.strip() else math.nan for cell in cells)
    except ValueError as error:
        raise DataError(f"{path}: {name}: {cells} are not two numbers") from error
    return [x, y, 2.0] if math.isfinite(x) and math.isfinite(y) else [0.0, 0.0, 0.0]


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow raises all kinds for damaged files; the checks open it again and say what is wrong
        return 0, 0
