"""WebDataset tar shards, read by offset.

Each shard is indexed once (names, offsets, sizes, labels); an image is then one `pread`, in any order. Streaming would
tie the order of an epoch to workers and buffers; by offset it is exactly the sampler's, and can be resumed at any
sample.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from condconv.data.decoding import common_format, decode_image, normalisation, spread
from condconv.data.manifest import CLASSES, Shard, manifest_of
from condconv.data.shard_index import Entry, index_shards
from condconv.data.source import ImageSet, Source, require_class_names, require_classes
from condconv.errors import DataError
from condconv.reading import read_text

PROGRESS = ".progress"
"""Folder inside a set that is still being written."""


class ShardImages(ImageSet):
    """Images in tar shards. `channels` is set once the whole set is known."""

    def __init__(self, shards: Sequence[Path], entries: Sequence[Entry]) -> None:
        self.shards = list(shards)
        self.names = [entry.name for entry in entries]
        places = [(entry.shard, entry.offset, entry.size) for entry in entries]
        self.places = torch.tensor(places, dtype=torch.int64).reshape(-1, 3)  # (N, 3)
        self.labels = torch.tensor([entry.label for entry in entries], dtype=torch.int64)
        self.channels = 3

    def read(self, index: int) -> bytes:
        """The encoded image. Raises `DataError` where the shard is gone or shorter than when it was indexed."""
        shard, offset, size = self.places[index].tolist()
        try:
            # Opened anew each time: microseconds, against a limit on open files that a large set's shards exceed.
            with self.shards[shard].open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{self.where(index)}: cannot be read ({error.strerror or error})") from error
        if len(data) != size:
            raise DataError(
                f"{self.where(index)}: the shard was cut short after it was indexed; "
                f"{size} bytes expected, {len(data)} read"
            )
        return data

    def load(self, index: int) -> Tensor:
        """See `ImageSet.load`."""
        return decode_image(self.read(index), self.where(index), self.channels)

    def where(self, index: int) -> str:
        """See `ImageSet.where`."""
        return f"{self.shards[int(self.places[index, 0])]}, sample {self.names[index]}"


def is_shard_folder(folder: Path) -> bool:
    """Whether the folder has tar files."""
    return any(folder.glob("*.tar"))


def open_shards(folder: Path, skip_bad: bool = False, num_classes: int | None = None) -> Source:
    """Open `train*.tar` and `val*.tar` or `test*.tar` with `.cls` labels (numbers, or names of `classes.txt`).

    Where the folder has a `shards.json`, the shards are those that it lists, with as many samples as it says. A shard
    that is cut short, a sample without label or image, or with a label out of range, raises `DataError`, or is left out
    and listed with `skip_bad`. Without a `classes.txt` the range is that of `num_classes`, or whatever labels occur.
    """
    manifest = manifest_of(folder)
    if manifest is None and (folder / PROGRESS).is_dir():  # the manifest is written last
        raise DataError(f"{folder}: its shards are not all written; finish it with the same 'condconv shard' again")
    if manifest is None:
        train_shards = sorted(folder.glob("train*.tar"))
        val_shards = sorted(folder.glob("val*.tar")) or sorted(folder.glob("test*.tar"))
    else:
        train_shards, val_shards = ([folder / s.name for s in half] for half in (manifest.train, manifest.val))
    for kind, shards in (("train*.tar", train_shards), ("val*.tar or test*.tar", val_shards)):
        if not shards:
            raise DataError(f"{folder}: no {kind} in it; expected shards of both a training and a validation set")
    named = _class_names(folder / CLASSES)
    allowed = named or (tuple(str(label) for label in range(num_classes)) if num_classes is not None else None)
    train_entries, problems = index_shards(train_shards, allowed, skip_bad=skip_bad)
    classes = named or tuple(str(label) for label in range(max((e.label for e in train_entries), default=-1) + 1))
    val_entries, val_problems = index_shards(val_shards, classes, skip_bad=skip_bad)
    problems += val_problems
    if manifest is not None and not problems:
        _require_counts(train_shards, train_entries, manifest.train)
        _require_counts(val_shards, val_entries, manifest.val)
    train, val = ShardImages(train_shards, train_entries), ShardImages(val_shards, val_entries)
    require_classes(str(folder), classes, train)
    if not val_entries:
        raise DataError(f"{val_shards[0]}: no samples in the validation shards")
    channels, size, native = common_format(train.read(index) for index in spread(train))
    train.channels = val.channels = channels
    mean, std = normalisation(channels)
    return Source(
        folder.name, train, val, classes, channels, size, native, flip=True, mean=mean, std=std, skipped=tuple(problems)
    )


def _require_counts(paths: Sequence[Path], entries: Sequence[Entry], listed: Sequence[Shard]) -> None:
    counts = torch.tensor([entry.shard for entry in entries], dtype=torch.int64).bincount(minlength=len(paths))
    for path, found, shard in zip(paths, counts.tolist(), listed, strict=True):
        if shard.samples is not None and found != shard.samples:
            raise DataError(
                f"{path}: {found} samples, and the list of shards says {shard.samples}; fetch or write the shard again"
            )


def _class_names(path: Path) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    names = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not names:
        raise DataError(f"{path}: the file is empty; expected one class name a line, or no such file")
    require_class_names(path, names)
    return names
