"""Small data sets on disk, in every format that the package reads."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def idx_bytes(array: Tensor) -> bytes:
    header = struct.pack(f">{1 + array.dim()}I", 0x0800 | array.dim(), *array.shape)
    return header + array.to(torch.uint8).numpy().tobytes()


def write_idx_set(folder: Path, train: int = 24, val: int = 12, classes: int = 3, compress: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, size in (("train", train), ("t10k", val)):
        labels = torch.arange(size) % classes
        images = (labels[:, None, None] * 40 + torch.randint(0, 40, (size, 9, 9))).to(torch.uint8)
        for stem, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            data = idx_bytes(array)
            path = folder / f"{prefix}-{stem}{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(data) if compress else data)


def jpeg(seed: int, size: tuple[int, int] = (16, 16), grey: bool = False, kind: str = "JPEG") -> bytes:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 255, size if grey else (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_folder_set(
    folder: Path, per_class: int = 4, classes: tuple[str, ...] = ("cat", "dog"), **image: object
) -> None:
    for half in ("train", "val"):
        for label, name in enumerate(classes):
            (folder / half / name).mkdir(parents=True, exist_ok=True)
            for number in range(per_class):
                path = folder / half / name / f"{number}.jpg"
                path.write_bytes(jpeg(100 * label + number, **image))


def write_tar(path: Path, samples: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def shard_samples(count: int, classes: int = 3, first: int = 0) -> dict[str, bytes]:
    samples = {}
    for number in range(first, first + count):
        samples[f"s{number:03d}.jpg"] = jpeg(number)
        samples[f"s{number:03d}.cls"] = str(number % classes).encode()
    return samples


def write_shard_set(folder: Path) -> None:
    write_tar(folder / "train-000.tar", shard_samples(6))
    write_tar(folder / "train-001.tar", shard_samples(5, first=6))
    write_tar(folder / "test-000.tar", shard_samples(4, first=50))
