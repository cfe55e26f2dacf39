"""IDX files (the format of MNIST): a big-endian magic number, the sizes, then the bytes; usually gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from condconv.data.cache import cache_folder
from condconv.data.source import Source, TensorImages, require_classes, require_labels
from condconv.errors import DataError
from condconv.limits import limit
from condconv.reading import open_regular

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package `dataset-fashion-mnist` puts its files."""

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, rank: int) -> Tensor:
    """Read a (gzipped) IDX file of unsigned bytes with `rank` axes; uint8 of the shape in its header.

    Raises `DataError` for a missing, empty, truncated, too long or foreign file, saying what was expected.
    """
    with _readable(path) as file:
        shape = _shape(path, file.read(4 + 4 * rank), rank)
        expected = math.prod(shape)
        if expected > limit("max_idx_bytes"):
            raise DataError(
                f"{path}: its header {shape} promises {expected} bytes, more than the limit; set CONDCONV_MAX_IDX_BYTES"
            )
        data = file.read(expected + 1)  # no further, whatever else is packed in it
    if len(data) != expected:
        kind, found = ("truncated", len(data)) if len(data) < expected else ("too long", "more")
        raise DataError(f"{path}: {kind}; its header {shape} promises {expected} bytes of data, found {found}")
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).reshape(shape)


def _shape(path: Path, header: bytes, rank: int) -> tuple[int, ...]:
    if not header:
        raise DataError(f"{path}: the file is empty; expected an IDX file of {rank} axes")
    if len(header) < 4 + 4 * rank:
        raise DataError(f"{path}: truncated; expected an IDX header of {4 + 4 * rank} bytes, found {len(header)}")
    magic, *shape = struct.unpack(f">{1 + rank}I", header)
    expected_magic = (_UNSIGNED_BYTE << 8) | rank
    if magic != expected_magic:
        raise DataError(
            f"{path}: not an IDX file of {rank} axes: it begins with {magic:#010x}, expected {expected_magic:#010x}"
        )
    return tuple(shape)


@contextmanager
def _readable(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked as it is read."""
    try:
        with open_regular(path) as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected an IDX file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: truncated or damaged gzip data ({error}); fetch the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _find(folder: Path, stem: str) -> Path:
    for name in (stem, f"{stem}.gz"):
        if (folder / name).exists():
            return folder / name
    raise DataError(
        f"{folder / stem}: no such file, nor {stem}.gz; expected the IDX files of an MNIST-like set in {folder}"
    )


def _half(folder: Path, prefix: str) -> TensorImages:
    image_path, label_path = _find(folder, f"{prefix}-images-idx3-ubyte"), _find(folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1).long()
    if len(images) != len(labels):
        raise DataError(f"{label_path}: {len(labels)} labels for the {len(images)} images of {image_path.name}")
    return TensorImages(images[:, None], labels, str(image_path))


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder looks like an MNIST-like set."""
    return any(folder.glob("train-images-idx3-ubyte*"))


def open_idx_folder(folder: Path, name: str, classes: tuple[str, ...] | None = None, flip: bool = False) -> Source:
    """The four IDX files of an MNIST-like set. Class names default to the numbers that occur in training."""
    train, val = _half(folder, "train"), _half(folder, "t10k")
    if len(train) and classes is None:
        classes = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    classes = classes or ()
    if not len(val):
        raise DataError(f"{val.origin}: no images in it; a validation set needs at least one")
    for half in (train, val):
        require_labels(half.labels, len(classes), half)
    require_classes(str(folder), classes, train)
    size = (train.images.shape[2], train.images.shape[3])
    if tuple(val.images.shape[2:]) != size:
        raise DataError(f"{val.origin}: images of {tuple(val.images.shape[2:])}, but the training images are {size}")
    # Mean and standard deviation of Fashion-MNIST's training pixels; close enough for any MNIST-like set.
    return Source(name, train, val, classes, 1, size, native=True, flip=flip, mean=(0.286,), std=(0.353,))


def open_fashion_mnist(download_folder: Path | None = None) -> Source:
    """Fashion-MNIST: the Debian package's files if present, else torchvision's download (kept in the user's cache)."""
    if is_idx_folder(DEBIAN_FOLDER):
        return open_idx_folder(DEBIAN_FOLDER, "fashion-mnist", FASHION_CLASSES, flip=True)
    root = download_folder or cache_folder()
    folder = root / "FashionMNIST" / "raw"
    if not is_idx_folder(folder):
        _download(root)
    return open_idx_folder(folder, "fashion-mnist", FASHION_CLASSES, flip=True)


def _download(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        for train in (True, False):
            FashionMNIST(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"fashion-mnist: not installed in {DEBIAN_FOLDER} and not downloadable ({error}); on Debian: "
            "'apt-get install dataset-fashion-mnist'; or pass --data digits, which needs no file"
        ) from error
