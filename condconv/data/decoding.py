"""Decoding of image files, and what a set of them has in common."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condconv.data.source import ImageSet
from condconv.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGE_SIZE = 224
_UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def decode_image(data: bytes, where: str, channels: int) -> Tensor:
    """Decode an image file to uint8 (channels, H, W), grey for one channel and RGB for three.

    Raises `DataError` naming `where`.
    """
    if not data:
        raise DataError(f"{where}: the image file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except _UNDECODABLE as error:
        raise DataError(
            f"{where}: cannot be decoded as an image ({error}); remove or replace it, or pass --skip-bad-images"
        ) from error
    tensor = torch.from_numpy(pixels)
    return tensor[None] if channels == 1 else tensor.permute(2, 0, 1).contiguous()


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; `DataError` naming it where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def common_format(files: Iterable[bytes]) -> tuple[int, tuple[int, int], bool]:
    """Channels, image size (H, W) and whether that is the stored size, judged from some encoded images.

    Grey only where all of them are grey. The stored size is kept where all of them share one of at most 224 pixels;
    otherwise the network gets 224 x 224 crops. Files that cannot be opened have no say here: they are reported when
    they are loaded.
    """
    sizes: set[tuple[int, int]] = set()
    grey = True
    for data in files:
        try:
            with Image.open(io.BytesIO(data)) as image:
                sizes.add((image.height, image.width))
                grey = grey and image.mode in ("1", "L")
        except _UNDECODABLE:
            continue
    channels = 1 if grey and sizes else 3
    if len(sizes) == 1 and max(next(iter(sizes))) <= LARGE_SIZE:
        return channels, next(iter(sizes)), True
    return channels, (LARGE_SIZE, LARGE_SIZE), False


def normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel: ImageNet's for colour, 0.5 and 0.25 for grey."""
    return ((0.5,), (0.25,)) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)


def spread(images: ImageSet, count: int = 64) -> list[int]:
    """At most `count` indices, evenly over the set."""
    return torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist()
