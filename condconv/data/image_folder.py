"""Image folders: `train/<class>/…` beside `val/<class>/…`, or one folder of classes that is split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from condconv.data.decoding import IMAGE_SUFFIXES, common_format, decode_image, normalisation, read_bytes, spread
from condconv.data.source import ImageSet, Source, require_class_names, require_classes
from condconv.data.splitting import split_by_class
from condconv.errors import DataError

_VAL_NAMES = ("val", "valid", "validation", "test")


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


def is_class_folder(folder: Path) -> bool:
    """Whether there are images in folders of the folder."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.glob("*/*"))


def open_image_folder(folder: Path, val_dir: str | None = None, val_fraction: float | None = None) -> Source:
    """Open `folder/train/<class>/…`, or `folder/<class>/…`; the classes are the folders' names, sorted.

    Args:
        folder: see above.
        val_dir: folder of the validation images; None for the first of `val`, `valid`, `validation` and `test` beside
            `train`.
        val_fraction: take this share of each class for validation where there is no such folder.

    Raises:
        DataError: a missing or empty folder, one class only, a class that only validation has, or no way to get
            validation images.
    """
    train_folder = folder / "train" if is_image_folder(folder) else folder
    if not train_folder.is_dir():
        raise DataError(f"{train_folder}: no such folder; an image folder has train/<class>/… and val/<class>/…")
    val_folder = _val_folder(folder, val_dir, val_fraction)
    classes = tuple(sorted(entry.name for entry in train_folder.iterdir() if entry.is_dir()))
    if not classes:
        raise DataError(f"{train_folder}: no class folders in it; expected {train_folder.name}/<class>/<image files>")
    require_class_names(train_folder, classes)
    images = _half(train_folder, classes, must_fill=True)
    train: ImageSet
    val: ImageSet
    if val_folder is None:
        assert val_fraction is not None
        train, val = split_by_class(images, classes, val_fraction, str(train_folder))
        halves = [images]
    else:
        foreign = sorted(entry.name for entry in val_folder.iterdir() if entry.is_dir() and entry.name not in classes)
        if foreign:
            raise DataError(f"{val_folder / foreign[0]}: class {foreign[0]!r} has no folder in {train_folder}")
        halves = [images, _half(val_folder, classes, must_fill=False)]
        train, val = halves
    require_classes(str(folder), classes, train)
    if len(val) == 0:
        raise DataError(
            f"{val_folder}: no image files in its class folders; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    channels, size, native = common_format(read_bytes(images.files[index]) for index in spread(images))
    for half in halves:
        half.channels = channels
    mean, std = normalisation(channels)
    return Source(folder.name, train, val, classes, channels, size, native, flip=True, mean=mean, std=std)


def _val_folder(folder: Path, val_dir: str | None, val_fraction: float | None) -> Path | None:
    """The folder of the validation images; None where they are taken from those of training."""
    if val_dir is not None:
        given = Path(val_dir).expanduser()
        if not given.is_dir():
            raise DataError(f"--val-dir {given}: no such folder; expected the class folders of validation in it")
        return given
    found = next((folder / name for name in _VAL_NAMES if (folder / name).is_dir()), None)
    if not is_image_folder(folder):  # what is called so there is a class
        found = None
    if found is None and val_fraction is None:
        raise DataError(
            f"{folder}: no validation images; there is no folder {', '.join(_VAL_NAMES[:-1])} or {_VAL_NAMES[-1]} "
            "beside train/; pass --val-dir FOLDER, or --val-fraction 0.2 for a fifth of each class"
        )
    if found is not None and val_fraction is not None:
        raise DataError(f"{found}: is there, so --val-fraction {val_fraction:g} has nothing to take; leave it out")
    return found


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
