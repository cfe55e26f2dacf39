"""From what the user calls a data set to a `Source`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from condconv.data.digits import open_digits
from condconv.data.idx import is_idx_folder, open_fashion_mnist, open_idx_folder
from condconv.data.image_folder import is_class_folder, is_image_folder, open_image_folder
from condconv.data.label_table import open_labelled
from condconv.data.remote import fetch_shards, is_url, name_of
from condconv.data.saved_dataset import is_saved_dataset, open_saved_dataset
from condconv.data.shards import is_shard_folder, open_shards
from condconv.data.source import Source
from condconv.errors import DataError
from condconv.registry import Registry

sources: Registry[Callable[[], Source]] = Registry("data set")
sources.register("digits", open_digits)
sources.register("fashion-mnist", open_fashion_mnist)


def open_source(
    data: str,
    *,
    skip_bad: bool = False,
    num_classes: int | None = None,
    val_dir: str | None = None,
    val_fraction: float | None = None,
    labels: str | None = None,
) -> Source:
    """Open a named data set, or a folder: of class folders, tar shards, IDX files, or a data set of Hugging Face.

    A name wins over a folder of that name in the working directory (write ./NAME for the folder). A URL (http, https,
    or any protocol that fsspec knows) is a folder of shards with a `shards.json`; they are kept in the user's cache.

    Args:
        data: name, folder or URL.
        skip_bad: leave out what is bad in shards and tables of labels: samples without a usable label or image, and
            the rest of a shard that is cut short.
        num_classes: which labels are usable in shards that name no classes; other sets have as many as they have.
        val_dir: folder of the validation images, of class folders too.
        val_fraction: share of each class that is taken for validation where nothing else says which images are.
        labels: a table that says which images of the folder are of which class, see `open_labelled`.

    Raises:
        UnknownNameError: no such name or folder; the message has the closest names.
        DataError: nothing that can be read, or something in it is wrong.
    """
    if labels is not None:
        return open_labelled(Path(data).expanduser(), labels, val_fraction=val_fraction, skip_bad=skip_bad)
    folder = Path(data).expanduser()
    named = data in sources or (os.sep not in data and not folder.exists())
    if not is_url(data) and not named and folder.is_dir():
        if is_saved_dataset(folder):
            return open_saved_dataset(folder, val_fraction)
        packed = is_shard_folder(folder) or is_idx_folder(folder)
        if is_image_folder(folder) or (not packed and is_class_folder(folder)):
            return open_image_folder(folder, val_dir, val_fraction)
    for flag, value in (("--val-dir", val_dir), ("--val-fraction", val_fraction)):
        if value is not None:
            raise DataError(f"{flag} {value}: is for folders of images, and {data} is none; leave it out")
    if is_url(data):
        return replace(open_shards(fetch_shards(data), skip_bad, num_classes), name=name_of(data))
    if named:
        return sources[data]()
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; pass a folder, or one of {', '.join(sources.names())}")
    if not folder.is_dir():
        raise DataError(f"{folder}: a file; expected a folder of images, of tar shards, or of IDX files")
    if is_shard_folder(folder):
        return open_shards(folder, skip_bad, num_classes)
    if is_idx_folder(folder):
        return open_idx_folder(folder, folder.name)
    raise DataError(
        f"{folder}: no data set recognised in it; expected train/<class>/… and val/<class>/…, <class>/… with "
        "--val-fraction, images with --labels TABLE, train*.tar and val*.tar or test*.tar, or "
        "train-images-idx3-ubyte[.gz] and its three companions"
    )
