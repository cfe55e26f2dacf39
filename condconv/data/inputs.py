"""Images without labels, from whatever is named: files, folders of them, tar shards, folders of shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from condconv.data.decoding import IMAGE_SUFFIXES
from condconv.data.image_folder import FileImages
from condconv.data.shard_index import index_shards
from condconv.data.shards import ShardImages
from condconv.data.source import ImageSet
from condconv.errors import DataError

_SHARD = ".tar"


class Chain(ImageSet):
    """Some sets after one another."""

    def __init__(self, parts: Sequence[FileImages | ShardImages]) -> None:
        self.parts = list(parts)
        self.labels = torch.cat([part.labels for part in parts])
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(dim=0)

    def set_channels(self, channels: int) -> None:
        """Decode as grey (1) or as colour (3), as the network wants it."""
        for part in self.parts:
            part.channels = channels

    def load(self, index: int) -> Tensor:
        """See `ImageSet.load`."""
        part, place = self._find(index)
        return part.load(place)

    def where(self, index: int) -> str:
        """See `ImageSet.where`."""
        part, place = self._find(index)
        return part.where(place)

    def _find(self, index: int) -> tuple[ImageSet, int]:
        number = int(torch.searchsorted(self.ends, index, right=True))
        return self.parts[number], index - (int(self.ends[number - 1]) if number else 0)


def open_inputs(names: Sequence[str], *, skip_bad: bool = False) -> tuple[Chain, list[str]]:
    """Open images by name, in the order of the names; inside a folder by path. Labels are 0.

    Args:
        names: image files, tar files, or folders that hold images or tar files at any depth.
        skip_bad: leave out what is bad in shards.

    Returns:
        The images, and what was left out, in words.

    Raises:
        DataError: nothing of that name, no image in it, or a damaged shard.
    """
    parts: list[FileImages | ShardImages] = []
    problems: list[str] = []
    for name in names:
        files = _files(Path(name).expanduser())
        pictures = [path for path in files if path.suffix.lower() != _SHARD]
        shards = [path for path in files if path.suffix.lower() == _SHARD]
        if pictures:
            images = FileImages(pictures, [0] * len(pictures))
            parts.append(images)
        if shards:
            entries, bad = index_shards(shards, None, labelled=False, skip_bad=skip_bad)
            problems += bad
            packed = ShardImages(shards, [entry._replace(label=0) for entry in entries])
            parts.append(packed)
    images_in_all = Chain(parts)
    if len(images_in_all) == 0:
        raise DataError(f"{', '.join(names)}: no images in it")
    return images_in_all, problems


def _files(path: Path) -> list[Path]:
    """The image files and shards that a name stands for."""
    kinds = IMAGE_SUFFIXES | {_SHARD}
    if path.is_dir():
        found = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in kinds and entry.is_file())
        if not found:
            raise DataError(f"{path}: no images and no tar shards in it; expected {', '.join(sorted(kinds))}")
        return found
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.suffix.lower() not in kinds:
        raise DataError(f"{path}: neither an image nor a tar shard by its name; expected {', '.join(sorted(kinds))}")
    return [path]
