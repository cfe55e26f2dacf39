"""`shards.json`: which shards belong to a set, and how many samples are in each. It is written last, so that a set with
one is complete; and a set on a server, which cannot be asked for its files, is found through it.

    {"format": 1, "train": [{"name": "train-000000.tar", "samples": 5000, "bytes": 71680000}], "val": […]}

`digest` says what the shards were made of; a manifest written by hand can leave it out, and `samples` and `bytes` too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condconv.errors import DataError

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
        content: dict[str, Any] = json.loads(text)
        if content["format"] > FORMAT:
            raise DataError(
                f"{where}: of format {content['format']}, written by a newer version; this one reads {FORMAT}"
            )
        train, val = (tuple(Shard(**shard) for shard in content[half]) for half in HALVES)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where}: not a list of shards ({type(error).__name__}: {error})") from error
    for shard in (*train, *val):
        if Path(shard.name).name != shard.name or not shard.name.strip("."):
            raise DataError(f"{where}: shard name {shard.name!r} must be a plain file name")
    return Manifest(train, val, str(content.get("digest", "")), tuple(content.get("skipped", ())))


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest of a folder, None where it has none."""
    path = folder / MANIFEST
    return read_manifest(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None
