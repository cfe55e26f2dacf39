"""`shards.json`: which shards belong to a set, and how many samples are in each. It is written last, so that a set with
one is complete; and a set on a server, which cannot be asked for its files, is found through it.

    {"format": 1, "train": [{"name": "train-000000.tar", "samples": 5000, "bytes": 71680000}], "val": […]}

`digest` says what the shards were made of; a manifest written by hand can leave it out, and `samples`, `bytes` and
`sha256` of a shard too.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condconv.errors import DataError
from condconv.limits import limit
from condconv.reading import parse_json, read_file

MANIFEST = "shards.json"
CLASSES = "classes.txt"
FORMAT = 1
HALVES = ("train", "val")


@dataclass(frozen=True)
class Shard:
    """One shard of a set; counts are None where they are not known."""

    name: str
    samples: int | None = None
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The shards of a set. `skipped` names the images that were left out because they could not be decoded."""

    train: tuple[Shard, ...]
    val: tuple[Shard, ...]
    digest: str = ""
    skipped: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def read_manifest(text: str, where: str) -> Manifest:
    """Read the text of a manifest. Raises `DataError`, naming `where` it is from, for anything else."""
    try:
        content: dict[str, Any] = parse_json(text)
        if content["format"] > FORMAT:
            raise DataError(
                f"{where}: of format {content['format']}, written by a newer version; this one reads {FORMAT}"
            )
        train, val = (tuple(Shard(**shard) for shard in content[half]) for half in HALVES)
        digest, skipped = str(content.get("digest", "")), tuple(map(str, content.get("skipped", ())))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where}: not a list of shards ({type(error).__name__}: {error})") from error
    _require_shards((*train, *val), where)
    return Manifest(train, val, digest, skipped)


def _require_shards(shards: tuple[Shard, ...], where: str) -> None:
    if len(shards) > limit("max_shards"):
        raise DataError(f"{where}: {len(shards)} shards; the limit is CONDCONV_MAX_SHARDS={limit('max_shards')}")
    if len({shard.name for shard in shards}) < len(shards):
        raise DataError(f"{where}: a shard is listed twice")
    for shard in shards:
        for name, value in (("samples", shard.samples), ("bytes", shard.bytes)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise DataError(f"{where}: shard {shard.name!r}: {name}={value!r} must be a whole number from 0")
        if shard.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", str(shard.sha256)):
            raise DataError(f"{where}: shard {shard.name!r}: sha256={shard.sha256!r} must be 64 hexadecimal digits")
        if not isinstance(shard.name, str) or "\0" in shard.name or shard.name.startswith("."):
            raise DataError(f"{where}: shard name {shard.name!r} must be a plain file name")
        if Path(shard.name).name != shard.name or not shard.name.strip("."):
            raise DataError(f"{where}: shard name {shard.name!r} must be a plain file name")


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest of a folder, None where it has none."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        text = read_file(path, "max_index_bytes").decode("utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return read_manifest(text, str(path))
