"""Image folders: `train/<class>/…` and `val/<class>/…`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from condconv.data.decoding import IMAGE_SUFFIXES, common_format, decode_image, normalisation, read_bytes, spread
from condconv.data.source import ImageSet, Source, require_class_names, require_classes
from condconv.errors import DataError


class FileImages(ImageSet):
    """Image files with their classes. `channels` is set once the whole set is known."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int]) -> None:
        self.files = list(files)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.channels = 3

    def load(self, index: int) -> Tensor:
        """See `ImageSet.load`."""
        return decode_image(read_bytes(self.files[index]), str(self.files[index]), self.channels)

    def where(self, index: int) -> str:
        """See `ImageSet.where`."""
        return str(self.files[index])


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has a `train` or a `val` folder."""
    return (folder / "train").is_dir() or (folder / "val").is_dir()


def open_image_folder(folder: Path) -> Source:
    """Open `folder/train/<class>/…` and `folder/val/<class>/…`; the classes are the folders of `train`, sorted by name.

    Raises `DataError` for a missing or empty folder, one class only, or a class that only `val` has.
    """
    train_folder, val_folder = folder / "train", folder / "val"
    for half in (train_folder, val_folder):
        if not half.is_dir():
            raise DataError(f"{half}: no such folder; an image folder has train/<class>/… and val/<class>/…")
    classes = tuple(sorted(entry.name for entry in train_folder.iterdir() if entry.is_dir()))
    if not classes:
        raise DataError(f"{train_folder}: no class folders in it; expected {train_folder.name}/<class>/<image files>")
    require_class_names(train_folder, classes)
    foreign = sorted(entry.name for entry in val_folder.iterdir() if entry.is_dir() and entry.name not in classes)
    if foreign:
        raise DataError(f"{val_folder / foreign[0]}: class {foreign[0]!r} has no folder in {train_folder}")
    train, val = _half(train_folder, classes, must_fill=True), _half(val_folder, classes, must_fill=False)
    require_classes(str(folder), classes, train)
    if len(val) == 0:
        raise DataError(
            f"{val_folder}: no image files in its class folders; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    channels, size, native = common_format(read_bytes(train.files[index]) for index in spread(train))
    train.channels = val.channels = channels
    mean, std = normalisation(channels)
    return Source(folder.name, train, val, classes, channels, size, native, flip=True, mean=mean, std=std)


def _half(folder: Path, classes: Sequence[str], must_fill: bool) -> FileImages:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        class_folder = folder / name
        found = sorted(path for path in class_folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if must_fill and not found:
            raise DataError(f"{class_folder}: no image files in it; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
        files += found
        labels += [label] * len(found)
    return FileImages(files, labels)
