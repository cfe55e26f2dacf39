"""Data sets of Hugging Face on disk: what `Dataset.save_to_disk` and `DatasetDict.save_to_disk` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condconv.data.decoding import common_format, decode_image, normalisation, read_bytes, spread
from condconv.data.source import ImageSet, Source, require_class_names, require_classes, require_labels
from condconv.data.splitting import split_by_class
from condconv.errors import DataError

_VAL_NAMES = ("validation", "val", "valid", "test")
_INSTALL = "pip install 'condconv[datasets]'"


class SavedImages(ImageSet):
    """The rows of one split. `channels` is set once the whole set is known."""

    def __init__(self, rows: Any, image: str, label: str, origin: str) -> None:
        from datasets import Image

        self.rows = rows.select_columns([image]).cast_column(image, Image(decode=False))
        self.image = image
        self.origin = origin
        self.labels = torch.tensor(rows[label][:], dtype=torch.int64)
        self.channels = 3

    def read(self, index: int) -> bytes:
        """The image as it is stored, encoded."""
        stored = self.rows[index][self.image]
        return stored["bytes"] if stored["bytes"] is not None else read_bytes(Path(stored["path"]))

    def load(self, index: int) -> Tensor:
        """See `ImageSet.load`."""
        return decode_image(self.read(index), self.where(index), self.channels)

    def where(self, index: int) -> str:
        """See `ImageSet.where`."""
        return f"{self.origin}, row {index}"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def open_saved_dataset(folder: Path, val_fraction: float | None = None) -> Source:
    """Open the splits `train` and the first of validation, val, valid and test; or split the one that there is.

    The image is the one column of the type `Image`, the class the one of the type `ClassLabel`.

    Raises:
        DataError: the package `datasets` is missing, the folder is damaged, there is no such column or more than one,
            or no way to get validation images.
    """
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise DataError(f"{folder}: a data set of Hugging Face needs the package datasets; {_INSTALL}") from None
    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # of every kind, by what is damaged
        reason = " ".join(str(error).split())
        raise DataError(f"{folder}: not a readable data set of Hugging Face ({reason})") from error
    splits = dict(found) if isinstance(found, DatasetDict) else {"train": found}
    if "train" not in splits:
        raise DataError(f"{folder}: no split 'train' in it; found {', '.join(splits)}")
    val_name = next((name for name in _VAL_NAMES if name in splits), None)
    if val_name is None and val_fraction is None:
        raise DataError(f"{folder}: no split for validation; pass --val-fraction 0.2 for a fifth of each class")
    if val_name is not None and val_fraction is not None:
        raise DataError(f"{folder}: has a split {val_name!r}, so --val-fraction {val_fraction:g} has nothing to take")
    features = splits["train"].features
    image, label = _the_one(folder, features, "Image"), _the_one(folder, features, "ClassLabel")
    classes = tuple(features[label].names)
    require_class_names(folder, classes)
    images = SavedImages(splits["train"], image, label, f"{folder}, train")
    halves = [images]
    train: ImageSet
    val: ImageSet
    if val_name is None:
        train, val = split_by_class(images, classes, float(val_fraction or 0), str(folder))
    else:
        halves.append(SavedImages(splits[val_name], image, label, f"{folder}, {val_name}"))
        train, val = halves
    for half in (train, val):
        require_labels(half.labels, len(classes), half)
    require_classes(str(folder), classes, train)
    channels, size, native = common_format(images.read(index) for index in spread(images))
    for each in halves:
        each.channels = channels
    mean, std = normalisation(channels)
    return Source(folder.name, train, val, classes, channels, size, native, flip=True, mean=mean, std=std)


def _the_one(folder: Path, features: Any, kind: str) -> str:
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        raise DataError(
            f"{folder}: {len(found)} columns of the type {kind} among {', '.join(features)}; expected one; remove the "
            "others, or cast the right one, and save the data set again"
        )
    return str(found[0])
