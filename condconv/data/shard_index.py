"""What is where in tar shards: a pass over their headers, and all that can be wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from condconv.data.decoding import IMAGE_SUFFIXES
from condconv.data.tar import tar_members
from condconv.errors import DataError
from condconv.limits import limit

_LABEL_BYTES = 1024
"""What is read of a label; a longer one is none."""


class Entry(NamedTuple):
    """One image inside a shard; label -1 where it was not asked for."""

    shard: int
    name: str
    offset: int
    size: int
    label: int


class Index(NamedTuple):
    """The samples of some shards, and what was wrong with others."""

    entries: list[Entry]
    problems: list[str]


def index_shards(
    shards: Sequence[Path], classes: Sequence[str] | None, *, labelled: bool = True, skip_bad: bool = False
) -> Index:
    """Find the samples of some shards.

    Args:
        shards: tar files.
        classes: names that labels may have, and how many classes there are; None where that is not known.
        labelled: every sample must have a label.
        skip_bad: leave out what is bad, and say so in `problems`; of a shard that is cut short, the rest.

    Raises:
        DataError: a truncated shard, a sample without image or label, a label out of range; the first one is named,
            and all are counted.
    """
    found = Index([], [])
    for number, shard in enumerate(shards):
        try:
            for where, fields in _samples(shard):
                try:
                    found.entries.append(_entry(number, where, fields, classes, labelled))
                except DataError as error:
                    found.problems.append(str(error))
        except DataError as error:
            found.problems.append(str(error))
    if found.problems and not skip_bad:
        more = f" (and {len(found.problems) - 1} more such samples or shards)" if len(found.problems) > 1 else ""
        raise DataError(f"{found.problems[0]}{more}; repair them, or leave them out with --skip-bad-images")
    return found


class _Field(NamedTuple):
    offset: int
    size: int
    content: bytes


def _entry(
    shard: int, where: str, fields: Mapping[str, _Field], classes: Sequence[str] | None, labelled: bool
) -> Entry:
    images = [field for suffix, field in fields.items() if suffix in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{where}: no image in the sample (it has {', '.join(sorted(fields))})")
    label = -1
    if labelled:
        if ".cls" not in fields:
            raise DataError(f"{where}: no label; expected a .cls file beside the image")
        label = _label(fields[".cls"].content, where, classes)
    return Entry(shard, where.rsplit(", sample ", 1)[1], images[0].offset, images[0].size, label)


def _label(content: bytes, where: str, classes: Sequence[str] | None) -> int:
    text = content.decode("utf-8", errors="replace").strip()
    number = text.isascii() and text.isdigit() and len(text) < 10
    if classes is not None and text in classes and not number:
        return classes.index(text)
    if not number:
        raise DataError(f"{where}: label {text!r} is neither a number nor a name in classes.txt")
    if classes is not None and int(text) >= len(classes):
        raise DataError(f"{where}: label {text} is out of range; expected 0 … {len(classes) - 1}")
    if int(text) >= limit("max_classes"):
        most = limit("max_classes")
        raise DataError(f"{where}: label {text} is out of range; the limit is CONDCONV_MAX_CLASSES={most}")
    return int(text)


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, _Field]]]:
    """The samples of a shard: consecutive members whose names agree up to the first dot of the base name."""
    key = ""
    fields: dict[str, _Field] = {}
    try:
        for name, suffix, field in _fields(shard):
            if name != key and fields:
                yield f"{shard}, sample {key}", fields
                fields = {}
            key = name
            fields[suffix] = field
    except DataError:
        if ".cls" in fields:  # the last whole sample before the shard is cut short
            yield f"{shard}, sample {key}", fields
        raise
    if fields:
        yield f"{shard}, sample {key}", fields


def _fields(shard: Path) -> Iterator[tuple[str, str, _Field]]:
    """Name up to the first dot, suffix, and the rest of each member; the content only of labels."""
    descriptor = -1
    try:
        for member in tar_members(shard):
            folder, base = os.path.split(member.name)
            stem, dot, suffix = base.partition(".")
            content = b""
            if suffix == "cls":
                descriptor = os.open(shard, os.O_RDONLY) if descriptor < 0 else descriptor
                content = os.pread(descriptor, min(member.size, _LABEL_BYTES), member.offset)
            field = _Field(member.offset, member.size, content)
            yield os.path.join(folder, stem), f"{dot}{suffix}".lower(), field
    finally:
        if descriptor >= 0:
            os.close(descriptor)
