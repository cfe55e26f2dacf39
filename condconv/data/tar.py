"""The members of a tar archive and where they stand, without reading them.

Python's tarfile needs some forty microseconds for each, which for the millions of a large set is minutes. Headers of
the plain kind are therefore read here; where another kind turns up (long names, extended attributes), tarfile goes on.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from condconv.errors import DataError

_BLOCK = 512
_OCTAL = re.compile(b"[0-7]+").fullmatch
_FILE = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")


class Member(NamedTuple):
    """A file inside an archive: where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


class _NotPlain(Exception):
    """A header of a kind that is left to tarfile."""


def tar_members(path: Path) -> Iterator[Member]:
    """The files of an archive, in order, and at the end a check that it is whole.

    Raises:
        DataError: the archive is missing, empty, damaged or cut short; the last member before is named.
    """
    last, yielded = "none", 0
    try:
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"{path}: the file is empty; expected a tar archive")
        with path.open("rb", buffering=0) as file:
            found = _plain(file.fileno())
            while True:
                try:
                    member = next(found, None)
                except _NotPlain:
                    found = itertools.islice(_by_tarfile(path), yielded, None)
                    continue
                if member is None:
                    break
                if member.offset + member.size > size:
                    raise tarfile.ReadError(f"the data of {member.name!r} is cut short")
                yield member
                last, yielded = member.name, yielded + 1
            # A whole archive ends in two blocks of zeros; one that is cut between two members does not.
            if size < 2 * _BLOCK or os.pread(file.fileno(), 2 * _BLOCK, size - 2 * _BLOCK).strip(b"\0"):
                raise tarfile.ReadError("the end mark is missing")
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: truncated or damaged tar archive: {error} after member {last!r}; fetch or write the shard again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _plain(descriptor: int) -> Iterator[Member]:
    """By the ustar layout: name 0–99, size 124–135, checksum 148–155, kind 156, magic 257–262, prefix 345–499."""
    offset = 0
    while True:
        header = os.pread(descriptor, _BLOCK, offset)
        if not header.strip(b"\0"):
            return
        if len(header) < _BLOCK:
            raise tarfile.ReadError("a header is cut short")
        kind = header[156:157]
        checksum = header[148:156].split(b"\0")[0].strip()
        if not _OCTAL(checksum) or int(checksum, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise tarfile.ReadError(f"no tar header at byte {offset}")
        size = header[124:136].split(b"\0")[0].strip()
        if kind not in (*_FILE, *_WITHOUT_DATA) or not (_OCTAL(size) or not size):
            raise _NotPlain
        length = int(size or b"0", 8) if kind in _FILE else 0
        if kind in _FILE:
            name = header[:100].split(b"\0")[0]
            if header[257:262] == b"ustar" and (prefix := header[345:500].split(b"\0")[0]):
                name = prefix + b"/" + name
            if not name.endswith(b"/"):  # as old archives mark a folder
                yield Member(name.decode("utf-8", "surrogateescape"), offset + _BLOCK, length)
        offset += _BLOCK + -(-length // _BLOCK) * _BLOCK


def _by_tarfile(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if member.isfile():
                yield Member(member.name, member.offset_data, member.size)
