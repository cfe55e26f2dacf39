"""WebDataset tar shards, read by offset.

Each shard is indexed once (names, offsets, sizes, labels); an image is then one `pread`, in any order. Streaming would
tie the order of an epoch to workers and buffers; by offset it is exactly the sampler's, and can be resumed at any
sample.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.data.decoding import IMAGE_SUFFIXES, common_format, decode_image, normalisation, spread
from condconv.data.source import ImageSet, Source, require_classes
from condconv.errors import DataError

_BLOCK = 512


class Entry(NamedTuple):
    """One image inside a shard."""

    shard: int
    name: str
    offset: int
    size: int
    label: int


class ShardImages(ImageSet):
    """Images in tar shards. `channels` is set once the whole set is known."""

    def __init__(self, shards: Sequence[Path], entries: Sequence[Entry]) -> None:
        self.shards = list(shards)
        self.names = [entry.name for entry in entries]
        self.places = torch.tensor([(e.shard, e.offset, e.size) for e in entries], dtype=torch.int64).reshape(
            -1, 3
        )  # (N, 3)
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


def open_shards(folder: Path, skip_bad: bool = False) -> Source:
    """Open `train*.tar` and `val*.tar` or `test*.tar` with `.cls` labels (numbers, or names of `classes.txt`).

    A sample without label or image, or with a label out of range, raises `DataError`, or is left out and listed with
    `skip_bad`.
    """
    train_shards = sorted(folder.glob("train*.tar"))
    val_shards = sorted(folder.glob("val*.tar")) or sorted(folder.glob("test*.tar"))
    for kind, shards in (("train*.tar", train_shards), ("val*.tar or test*.tar", val_shards)):
        if not shards:
            raise DataError(f"{folder}: no {kind} in it; expected shards of both a training and a validation set")
    named = _class_names(folder / "classes.txt")
    problems: list[str] = []
    train_entries = _index_all(train_shards, named, skip_bad, problems)
    classes = named or tuple(str(label) for label in range(max((e.label for e in train_entries), default=-1) + 1))
    val_entries = _index_all(val_shards, classes, skip_bad, problems)
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


def _class_names(path: Path) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not names:
        raise DataError(f"{path}: the file is empty; expected one class name a line, or no such file")
    return names


def _index_all(
    shards: Sequence[Path], classes: Sequence[str] | None, skip_bad: bool, problems: list[str]
) -> list[Entry]:
    entries = []
    for number, shard in enumerate(shards):
        for where, fields in _samples(shard):
            try:
                entries.append(_entry(number, where, fields, classes))
            except DataError as error:
                if not skip_bad:
                    raise
                problems.append(str(error))
    return entries


class _Field(NamedTuple):
    offset: int
    size: int
    content: bytes


def _entry(shard: int, where: str, fields: Mapping[str, _Field], classes: Sequence[str] | None) -> Entry:
    images = [field for suffix, field in fields.items() if suffix in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{where}: no image in the sample (it has {', '.join(sorted(fields))})")
    if ".cls" not in fields:
        raise DataError(f"{where}: no label; expected a .cls file beside the image, or pass --skip-bad-images")
    label = _label(fields[".cls"].content, where, classes)
    return Entry(shard, where.rsplit(", sample ", 1)[1], images[0].offset, images[0].size, label)


def _label(content: bytes, where: str, classes: Sequence[str] | None) -> int:
    text = content.decode("utf-8", errors="replace").strip()
    if classes is not None and text in classes and not text.isdecimal():
        return classes.index(text)
    if not text.isdecimal():
        raise DataError(f"{where}: label {text!r} is neither a number nor a name in classes.txt")
    if classes is not None and int(text) >= len(classes):
        raise DataError(f"{where}: label {text} is out of range; expected 0 … {len(classes) - 1}")
    return int(text)


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, _Field]]]:
    """The samples of a shard: consecutive members whose names agree up to the first dot of the base name."""
    key = ""
    fields: dict[str, _Field] = {}
    for name, suffix, field in _members(shard):
        if name != key and fields:
            yield f"{shard}, sample {key}", fields
            fields = {}
        key = name
        fields[suffix] = field
    if fields:
        yield f"{shard}, sample {key}", fields


def _members(shard: Path) -> Iterator[tuple[str, str, _Field]]:
    if shard.stat().st_size == 0:
        raise DataError(f"{shard}: the file is empty; expected a tar archive")
    last = "none"
    try:
        with tarfile.open(shard, "r:") as archive, shard.open("rb") as file:
            for member in archive:
                if not member.isfile():
                    continue
                folder, base = os.path.split(member.name)
                stem, dot, suffix = base.partition(".")
                content = os.pread(file.fileno(), member.size, member.offset_data) if suffix == "cls" else b""
                last = member.name
                yield (
                    os.path.join(folder, stem),
                    f"{dot}{suffix}".lower(),
                    _Field(member.offset_data, member.size, content),
                )
            _require_end(shard, file.fileno(), last)
    except tarfile.TarError as error:
        raise DataError(
            f"{shard}: truncated or damaged tar archive ({error}) after member {last!r}; fetch or write the shard again"
        ) from error


def _require_end(shard: Path, descriptor: int, last: str) -> None:
    """A whole archive ends in two blocks of zeros; one cut between two members does not."""
    size = os.fstat(descriptor).st_size
    if size < 2 * _BLOCK or os.pread(descriptor, 2 * _BLOCK, size - 2 * _BLOCK).strip(b"\0"):
        raise DataError(
            f"{shard}: truncated tar archive: the end mark is missing after member {last!r}; "
            "fetch or write the shard again"
        )
