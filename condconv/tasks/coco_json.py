"""Files in COCO's JSON: what is common to boxes and joints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from condconv.errors import DataError
from condconv.reading import parse_json, read_text

_SHOWN = 3


def read_content(path: Path) -> dict[str, Any]:
    """The lists of a file. Raises `DataError` where it is no JSON of this kind, or nothing is in it."""
    try:
        content = parse_json(read_text(path, "max_annotation_bytes"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON, truncated or damaged ({error}); export it again") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise DataError(f"{path}: no annotations in COCO's format; expected an object with {', '.join(lists)}")
    for name, keys in (("images", ("id", "file_name", "width", "height")), ("categories", ("id", "name"))):
        for entry in content[name]:
            missing = [key for key in keys if not isinstance(entry, Mapping) or key not in entry]
            if missing:
                raise DataError(f"{path}: an entry of {name} has no {missing[0]!r}: {str(entry)[:80]}")
    if not content["images"] or not content["categories"]:
        raise DataError(f"{path}: lists no images or no categories")
    return content


def refuse(problems: Sequence[str], folder: Path, *, skip_bad: bool) -> None:
    """Raise `DataError` where something is wrong in a folder's annotations, unless it is to be left out."""
    if problems and not skip_bad:
        raise DataError(
            f"{len(problems)} entries of the annotations are wrong: {'; '.join(problems[:_SHOWN])}"
            f"{'; …' if len(problems) > _SHOWN else ''}. Correct them, or pass --skip-bad-images to leave them out; "
            f"'condconv data check {folder}' lists all"
        )


def _twice(path: Path, kind: str, entries: list[Any]) -> Iterator[str]:
    for name, count in Counter(str(entry.get("id")) for entry in entries).items():
        if count > 1:
            yield f"{path}: {kind} id {name} occurs {count} times"


def checked_images(
    content: Mapping[str, Any], path: Path, images: Path
) -> tuple[dict[Any, Path], dict[Any, tuple[float, float]], list[str]]:
    """File and size (width, height) of each image by its id, and what is wrong with others and with ids, in words."""
    problems = [*_twice(path, "image", content["images"]), *_twice(path, "annotation", content["annotations"])]
    sizes: dict[Any, tuple[float, float]] = {}
    files: dict[Any, Path] = {}
    for entry in content["images"]:
        found = images / str(entry["file_name"])
        problem = _image_problem(found, entry)
        if problem is None:
            files.setdefault(entry["id"], found)
            sizes[entry["id"]] = (float(entry["width"]), float(entry["height"]))
        else:
            problems.append(f"{path}: image {entry['id']}: {problem}")
    return files, sizes, problems


def _image_problem(path: Path, entry: Mapping[str, Any]) -> str | None:
    try:
        with Image.open(path) as image:
            size = image.size
    except Exception as error:  # Pillow raises all kinds for damaged files
        reason = "is missing" if not path.exists() else f"cannot be opened ({error})"
        return f"{path} {reason}"
    if size != (entry["width"], entry["height"]):
        return f"{path} is {size[0]} x {size[1]} pixels, and {entry['width']} x {entry['height']} are stated"
    return None
