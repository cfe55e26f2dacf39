"""Annotations of YOLO (a text file for each image) and of Pascal VOC (XML), brought into the form of COCO's JSON.

So that what is wrong in them is found by the same checks, see `condconv.tasks.detect.coco`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from condconv.data.decoding import IMAGE_SUFFIXES
from condconv.errors import DataError
from condconv.reading import parse_yaml, read_text

_LIST = Path("ImageSets") / "Main"


def find_yolo(folder: Path) -> Path | None:
    """The `data.yaml` of a YOLO folder; None where there is none."""
    return next((folder / name for name in ("data.yaml", "data.yml") if (folder / name).is_file()), None)


def yolo_content(data: Path, half: str) -> tuple[dict[str, Any], Path]:
    """A half as COCO's JSON has it, and the folder that its file names are relative to.

    `data.yaml` says the names of the classes and where the images of a half are; the labels are in a folder `labels`
    in place of `images`, or beside the images: lines of class, centre x, y, width and height in fractions.

    Raises:
        DataError: no such file, or a line that is none.
    """
    try:
        settings = parse_yaml(read_text(data))
    except (OSError, ValueError) as error:
        raise DataError(f"{data}: not readable as YAML ({error})") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("names"), list | dict) or half not in settings:
        raise DataError(f"{data}: expected names, train and val; see docs/detection.md")
    names = settings["names"]
    by_number = dict(enumerate(names)) if isinstance(names, list) else names
    folder = (data.parent / str(settings.get("path") or ".") / str(settings[half])).resolve()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    content = _empty([(number, str(name)) for number, name in sorted(by_number.items())])
    for number, path in enumerate(files, 1):
        width, height = _size(path)
        content["images"].append(_image(number, path, width, height))
        for category, (x, y, w, h) in _yolo_boxes(path):
            _add(content, number, category, [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height])
    return content, folder


def _yolo_boxes(image: Path) -> Iterator[tuple[int, tuple[float, ...]]]:
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    labels = next((p for p in (Path(*parts).with_suffix(".txt"), image.with_suffix(".txt")) if p.is_file()), None)
    for number, line in enumerate(() if labels is None else _lines(labels), 1):
        try:
            category, *box = line.split()[:5]
            yield int(category), tuple(float(value) for value in box)
        except ValueError as error:
            raise DataError(f"{labels}: line {number}: {line!r} is not class, x, y, width, height") from error
        if len(box) != 4 or any(float(value) > 1.5 for value in box):
            raise DataError(f"{labels}: line {number}: {line!r} is not in fractions of the image; divide by its size")


def is_voc(folder: Path, half: str) -> bool:
    """Whether a folder has Pascal VOC's list of a half."""
    return (folder / _LIST / f"{half}.txt").is_file()


def voc_content(folder: Path, half: str) -> tuple[dict[str, Any], Path]:
    """A half as COCO's JSON has it, and the folder of its images.

    `ImageSets/Main/<half>.txt` lists the images; classes are the names that occur in either half, sorted. Corners are
    counted from 1 and belong to their box; objects marked `difficult` are as COCO's crowds.

    Raises:
        DataError: an XML file that is missing or none.
    """
    objects = {name: _voc_objects(folder, name) for each in ("train", "val") for name in _voc_names(folder, each)}
    classes = sorted({entry[0] for found in objects.values() for entry in found[1]})
    content = _empty(list(enumerate(classes, 1)))
    for number, name in enumerate(_voc_names(folder, half), 1):
        (file_name, width, height), found = objects[name]
        content["images"].append(_image(number, Path(file_name), width, height))
        for kind, (x1, y1, x2, y2), difficult in found:
            _add(content, number, classes.index(kind) + 1, [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], difficult)
    return content, folder / "JPEGImages"


def _voc_names(folder: Path, half: str) -> list[str]:
    path = folder / _LIST / f"{half}.txt"
    return [line.split()[0] for line in _lines(path)] if path.is_file() else []


def _voc_objects(folder: Path, name: str) -> tuple[tuple[str, int, int], list[tuple[str, list[float], bool]]]:
    path = folder / "Annotations" / f"{name}.xml"
    try:
        root = ET.fromstring(read_text(path))
        size = root.find("size")
        found = []
        for entry in root.iter("object"):
            box = [float(entry.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            found.append((str(entry.findtext("name")), box, entry.findtext("difficult", "0").strip() == "1"))
        width, height = (int(size.findtext(side, "")) for side in ("width", "height"))  # type: ignore[union-attr]
        return (root.findtext("filename") or f"{name}.jpg", width, height), found
    except (OSError, ValueError, AttributeError, ET.ParseError) as error:
        raise DataError(f"{path}: not an annotation of Pascal VOC ({error})") from error


def _empty(categories: Sequence[tuple[Any, str]]) -> dict[str, Any]:
    return {
        "images": [], "annotations": [], "categories": [{"id": number, "name": name} for number, name in categories]
    }  # fmt: skip


def _image(number: int, path: Path, width: int, height: int) -> dict[str, Any]:
    return {"id": number, "file_name": str(path), "width": width, "height": height}


def _add(content: dict[str, Any], image: int, category: Any, box: list[float], crowd: bool = False) -> None:
    number = len(content["annotations"]) + 1
    content["annotations"].append(
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": int(crowd)}
    )


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow raises all kinds for damaged files; the checks open it again and say what is wrong
        return 0, 0


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
