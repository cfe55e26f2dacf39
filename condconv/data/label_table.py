"""Images whose classes stand in a table: CSV or Parquet, with the columns `image`, `label` and, if it has one, `split`.

All that is wrong in it is counted and named before anything is trained on.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condconv.data.decoding import common_format, normalisation, read_bytes, spread
from condconv.data.image_folder import FileImages
from condconv.data.source import ImageSet, Source, Subset, require_class_names, require_classes
from condconv.data.splitting import named, split_by_class
from condconv.errors import DataError
from condconv.reading import read_text

SEPARATOR = "|"
"""Between the labels of one image, where it may have several."""
CLASSES = "classes.txt"
_HALVES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}


class LabelRow(NamedTuple):
    """A line of the table: an image, relative to the folder, its labels, and its half ("" where no column says it)."""

    image: str
    labels: tuple[str, ...]
    half: str


@dataclass(frozen=True)
class LabelTable:
    """What is usable in a table, its classes, and what is wrong with the rest, in words."""

    rows: list[LabelRow]
    classes: tuple[str, ...]
    problems: list[str]


class TaggedImages(FileImages):
    """Image files with any number of classes each: `tags` bool (N, classes); `labels` the first one, -1 for none."""

    def __init__(self, files: Sequence[Path], tags: Tensor) -> None:
        super().__init__(files, torch.where(tags.any(dim=1), tags.int().argmax(dim=1), -1).tolist())
        self.tags = tags

    def target(self, index: int) -> Tensor:
        """The classes of an image: f32 (classes,), 1 for those that it has."""
        return self.tags[index].float()


def open_labelled(
    folder: Path, labels: str, *, val_fraction: float | None = None, skip_bad: bool = False, several: bool = False
) -> Source:
    """Open the images of a folder that a table names, with the classes that it gives them.

    The classes are those of the folder's `classes.txt`, one a line, else those of the training rows, sorted.

    Args:
        folder: where the images are.
        labels: the table, .csv or .parquet.
        val_fraction: share of the images (with one label each: of each class) that is taken for validation where the
            table has no `split`.
        skip_bad: leave out rows that are wrong, and list them, instead of stopping.
        several: an image may have any number of labels, joined by "|"; its set is a `TaggedImages`.

    Raises:
        DataError: no such table or column; or rows that are wrong: each kind is counted, and named.
    """
    path = Path(labels).expanduser()
    rows = list(_rows(path, several))
    split = any(row.half for row in rows)
    if not split and val_fraction is None:
        raise DataError(
            f"{path}: no column 'split' (train, val); add one, or pass --val-fraction 0.2 for a fifth of the images"
        )
    if split and val_fraction is not None:
        raise DataError(f"{path}: has a column 'split', so --val-fraction {val_fraction:g} says nothing; leave it out")
    table = _checked(rows, folder, split)
    if table.problems and not skip_bad:
        raise DataError(
            f"{path}: {'; '.join(table.problems)}; correct the table, or pass --skip-bad-images to leave these rows out"
        )
    require_class_names(path, table.classes)
    images = _images(folder, table, several)
    if split:
        is_val = torch.tensor([row.half == "val" for row in table.rows], dtype=torch.bool)
        train, val = (Subset(images, half.nonzero().flatten()) for half in (~is_val, is_val))
    elif several:
        train, val = _split(images, float(val_fraction or 0))
    else:
        train, val = split_by_class(images, table.classes, float(val_fraction or 0), str(path))
    if not several:
        require_classes(str(path), table.classes, train)
    for kind, half in (("training", train), ("validation", val)):
        if not len(half):
            raise DataError(f"{path}: no {kind} images in it; check the column 'split'")
    images.channels, size, native = common_format(read_bytes(images.files[index]) for index in spread(images))
    mean, std = normalisation(images.channels)
    return Source(
        folder.resolve().name, train, val, table.classes, images.channels, size, native, flip=True, mean=mean, std=std,
        skipped=tuple(table.problems),
    )  # fmt: skip


def _images(folder: Path, table: LabelTable, several: bool) -> FileImages:
    number = {name: label for label, name in enumerate(table.classes)}
    files = [folder / row.image for row in table.rows]
    if not several:
        return FileImages(files, [number[row.labels[0]] for row in table.rows])
    tags = torch.zeros(len(files), len(number), dtype=torch.bool)
    for place, row in enumerate(table.rows):
        tags[place, [number[label] for label in row.labels]] = True
    return TaggedImages(files, tags)


def _split(images: ImageSet, fraction: float) -> tuple[Subset, Subset]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    taken = min(len(images) - 1, max(1, round(len(images) * fraction)))
    return Subset(images, order[taken:].sort().values), Subset(images, order[:taken].sort().values)


def _checked(rows: Sequence[LabelRow], folder: Path, split: bool) -> LabelTable:
    """Sort out what is wrong: each row is named under its first problem."""
    of_image: dict[str, set[LabelRow]] = {}
    for row in rows:
        of_image.setdefault(row.image, set()).add(row)
    times = Counter(row.image for row in rows)
    given = _class_names(folder / CLASSES)
    classes = given or tuple(sorted({label for row in rows for label in row.labels if not split or row.half != "val"}))
    kinds: dict[str, list[str]] = {}
    good = []
    for row in dict.fromkeys(rows):
        unknown = [label for label in row.labels if label not in classes]
        if len(of_image[row.image]) > 1:
            problem = "images with two labels or in two halves"
        elif times[row.image] > 1:
            problem = "images named twice"
        elif not (folder / row.image).is_file():
            problem = f"images missing in {folder}"
        elif unknown:
            where = f"not in {CLASSES}" if given else "of no training image"
            problem = f"images of unknown classes ({where}: {named(sorted(set(unknown)))})"
        else:
            good.append(row)
            continue
        kinds.setdefault(problem, []).append(row.image)
    problems = [f"{len(set(names))} {kind}: {named(list(dict.fromkeys(names)))}" for kind, names in kinds.items()]
    return LabelTable(good, classes, problems)


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in _text(path).splitlines() if line.strip())


def _rows(path: Path, several: bool) -> Iterator[LabelRow]:
    records = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    for line, record in enumerate(records, 2):
        image, label, half = (_cell(record, column) for column in ("image", "label", "split"))
        half = half.lower()
        if half and half not in _HALVES:
            raise DataError(f"{path}, row {line}: split {half!r} is unknown; expected {', '.join(_HALVES)}")
        if "split" in record and not half:
            raise DataError(f"{path}, row {line}: its split is empty; expected {', '.join(_HALVES)}")
        if not image or (not label and not several):
            raise DataError(f"{path}, row {line}: has no {'label' if image else 'image'}; fill it in, or take it out")
        labels = tuple(part.strip() for part in label.split(SEPARATOR) if part.strip()) if several else (label,)
        yield LabelRow(image, labels, _HALVES.get(half, ""))


def _cell(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    return "" if value is None else str(value).strip()


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), restval="")
    _require_columns(path, reader.fieldnames or ())
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}: not a readable CSV file ({error}, line {reader.line_num})") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{path}: Parquet needs the package pyarrow; install it with: pip install pyarrow, or write a .csv"
        ) from None
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error
    _require_columns(path, table.column_names)
    yield from table.to_pylist()


def _require_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in ("image", "label") if column not in columns]
    if missing:
        raise DataError(
            f"{path}: no column {' and no '.join(map(repr, missing))}; expected 'image' and 'label', found "
            f"{named(list(columns)) or 'none'}"
        )


def _text(path: Path) -> str:
    try:
        return read_text(path, "max_annotation_bytes").removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
