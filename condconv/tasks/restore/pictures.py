"""Pictures without labels as a data set: of any folder, with a tenth held out where there is no validation set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from condconv.data import Source, open_source, sources
from condconv.data.decoding import IMAGE_SUFFIXES, common_format, read_bytes, spread
from condconv.data.idx import is_idx_folder
from condconv.data.image_folder import FileImages
from condconv.data.remote import is_url
from condconv.data.shards import is_shard_folder
from condconv.errors import DataError

CROP = 64
"""Side of the crops that are trained on, where the pictures are larger, pixels."""

SMALLEST = 16
"""Sides below this have nothing to restore, and no structural similarity."""

HELD_OUT = 10
"""Every tenth picture on average."""


def open_pictures(data: str, *, skip_bad: bool = False) -> Source:
    """Open what `condconv.data.open_source` opens, or a folder that has pictures at any depth; labels are forgotten.

    Of `train/` and `val/` inside it each is a half; without `val/` a tenth of the pictures, drawn with a fixed seed, is
    held out.

    Raises:
        UnknownNameError: no such name or folder.
        DataError: fewer than two pictures, or nothing that can be read.
    """
    folder = Path(data).expanduser()
    named = is_url(data) or data in sources or not folder.is_dir()
    if named or is_shard_folder(folder) or is_idx_folder(folder):
        source = open_source(data, skip_bad=skip_bad)
    else:
        train, val = _halves(folder)
        channels, size, native = common_format(read_bytes(train.files[index]) for index in spread(train))
        train.channels = val.channels = channels
        source = Source(folder.name, train, val, (), channels, size, native, flip=True, mean=(), std=())
    if min(source.image_size) > CROP or not source.native:
        source = replace(source, image_size=(CROP, CROP), native=False)
    plain = {"classes": (), "mean": (0.0,) * source.channels, "std": (1.0,) * source.channels}
    return replace(source, **plain)  # type: ignore[arg-type]


def _halves(folder: Path) -> tuple[FileImages, FileImages]:
    train = _files(folder / "train" if (folder / "train").is_dir() else folder)
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        return _images(train), _images(_files(folder / "val"))
    if len(train) < 2:
        raise DataError(f"{folder}: one picture in it; at least two are needed, of which one is held out")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = set(order[: max(1, len(train) // HELD_OUT)])
    return (
        _images([path for place, path in enumerate(train) if place not in held_out]),
        _images([path for place, path in enumerate(train) if place in held_out]),
    )


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{folder}: no image files in it; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def _images(files: Sequence[Path]) -> FileImages:
    return FileImages(files, [0] * len(files))
