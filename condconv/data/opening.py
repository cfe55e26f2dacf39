"""From what the user calls a data set to a `Source`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from condconv.data.digits import open_digits
from condconv.data.folder import is_image_folder, open_image_folder
from condconv.data.idx import is_idx_folder, open_fashion_mnist, open_idx_folder
from condconv.data.remote import fetch_shards, is_url, name_of
from condconv.data.shards import is_shard_folder, open_shards
from condconv.data.source import Source
from condconv.errors import DataError
from condconv.registry import Registry

sources: Registry[Callable[[], Source]] = Registry("data set")
sources.register("digits", open_digits)
sources.register("fashion-mnist", open_fashion_mnist)


def open_source(data: str, *, skip_bad: bool = False, num_classes: int | None = None) -> Source:
    """Open a named data set, or a folder: `train/<class>/…` and `val/<class>/…`, tar shards, or IDX files.

    A name wins over a folder of that name in the working directory (write ./NAME for the folder). A URL (http, https,
    or any protocol that fsspec knows) is a folder of shards with a `shards.json`; they are kept in the user's cache.
    `skip_bad` leaves out what is bad in shards: samples without a usable label, and the rest of one that is cut short.
    `num_classes` says which labels are usable in shards that name no classes; other sets have as many as they have.

    Raises:
        UnknownNameError: no such name or folder; the message has the closest names.
        DataError: nothing that can be read, or something in it is wrong.
    """
    if is_url(data):
        return replace(open_shards(fetch_shards(data), skip_bad, num_classes), name=name_of(data))
    folder = Path(data).expanduser()
    if data in sources or (os.sep not in data and not folder.exists()):
        return sources[data]()
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; pass a folder, or one of {', '.join(sources.names())}")
    if not folder.is_dir():
        raise DataError(f"{folder}: a file; expected a folder of train/ and val/, of tar shards, or of IDX files")
    if is_image_folder(folder):
        return open_image_folder(folder)
    if is_shard_folder(folder):
        return open_shards(folder, skip_bad, num_classes)
    if is_idx_folder(folder):
        return open_idx_folder(folder, folder.name)
    raise DataError(
        f"{folder}: no data set recognised in it; expected train/<class>/… and val/<class>/…, "
        "train*.tar and val*.tar or test*.tar, or train-images-idx3-ubyte[.gz] and its three companions"
    )
