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
from condconv.limits import limit
from condconv.reading import read_file

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Of those suffixes, by Pillow's names. It has others, one of which starts a program: Ghostscript, for EPS."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGE_SIZE = 224
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I")


def decode_image(data: bytes, where: str, channels: int) -> Tensor:
    """Decode an image file to uint8 (channels, H, W), grey for one channel and RGB for three.

    Raises `DataError` naming `where`.
    """
    if not data:
        raise DataError(f"{where}: the image file is empty (0 bytes)")
    try:
        with _opened(data) as image:
            _require_size(image)
            pixels = np.array(_eight_bits(image).convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # Pillow raises all kinds for damaged files, and warns, which may be an error too
        raise DataError(
            f"{where}: cannot be decoded as an image ({error}); remove or replace it, or pass --skip-bad-images"
        ) from error
    tensor = torch.from_numpy(pixels)
    return tensor[None] if channels == 1 else tensor.permute(2, 0, 1).contiguous()


def _opened(data: bytes) -> Image.Image:
    """The image, not yet decoded. Pillow has a limit of pixels too, at which it warns; it gives way to a higher one."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit("max_image_pixels"))
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _require_size(image: Image.Image) -> None:
    most = limit("max_image_pixels")
    if image.width * image.height > most:
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than the limit of {most}; set CONDCONV_MAX_IMAGE_PIXELS"
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8 bits; Pillow would cut off all above 255 instead of scaling."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no white; convert it to 8 or 16 bits")
    if image.mode not in _SIXTEEN_BITS:
        return image
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise ValueError("its pixels have 32 bits; convert it to 8 or 16 bits")
    return Image.fromarray(((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file; `DataError` naming it where it cannot be read, is no file, or is too large."""
    try:
        return read_file(path, "max_image_bytes")
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
            with _opened(data) as image:
                sizes.add((image.height, image.width))
                grey = grey and image.mode in ("1", "L", *_SIXTEEN_BITS)
        except Exception:
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
