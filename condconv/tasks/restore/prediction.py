"""Restoring pictures of any size into a folder, one PNG each; an interrupted call goes on with what is missing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from condconv.data import ImageSet
from condconv.errors import ArgumentError, DataError
from condconv.evaluation.identity import weights_digest
from condconv.files import Lock, write_bytes, write_text
from condconv.tasks.base import Request
from condconv.tasks.outputs import kept_so_far, output_names
from condconv.tasks.restore.drawing import sheet

ABOUT = "network.json"
SHEET, SHEET_PICTURES = "before_after.png", 8


def check_folder(out: Path) -> None:
    """Raise `ArgumentError` unless a folder of restored pictures can be made or gone on with there."""
    if out.exists() and not (out / ABOUT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ArgumentError(f"--out {out}: is there already, and no folder of restored pictures; pass another name")


def restore(request: Request) -> list[str]:
    """Restore the validation pictures of a source as they are, whole, and write them.

    Args:
        request: `out` is the folder.

    Returns:
        The pictures that could not be decoded.

    Raises:
        ArgumentError: the folder cannot be written, or was begun with another network.
        DataError: a picture cannot be decoded, and is not to be skipped; those before it are kept.
        BusyError: another process is writing into this folder.
    """
    out, images = request.out, request.source.val
    network = request.network.to(request.device).eval()
    damaged = []
    with kept_so_far(out):
        out.mkdir(parents=True, exist_ok=True)
        with Lock(out / ".lock", f"--out {out}"):
            _begin(out, network)
            for place, name in enumerate(output_names(images)):
                request.progress(place, len(images))
                if (out / name).exists():
                    continue
                try:
                    picture = images.load(place)
                except DataError:
                    if not request.skip_bad:
                        raise
                    damaged.append(images.where(place))
                    continue
                write_bytes(out / name, _png(restored(network, picture, request.device)))
            request.progress(len(images), len(images))
            _write_sheet(out, images, damaged)
    return damaged


@torch.inference_mode()
def restored(network: nn.Module, picture: Tensor, device: torch.device) -> Tensor:
    """One picture, uint8 (C, H, W) → uint8 of the same shape."""
    output: Tensor = network(picture[None].to(device, torch.float32) / 255)
    return (255 * output[0].float()).round().clamp(0, 255).byte().cpu()


def _begin(out: Path, network: nn.Module) -> None:
    about = json.dumps({"weights": weights_digest(network)})
    path = out / ABOUT
    if not path.exists():
        write_text(path, f"{about}\n")
    elif path.read_text(encoding="utf-8").strip() != about:
        raise ArgumentError(f"--out {out}: was begun with another network; repeat that call, or pass another --out")


def _write_sheet(out: Path, images: ImageSet, damaged: list[str]) -> None:
    """The first pictures before and after."""
    chosen = [
        (place, name)
        for place, name in zip(range(SHEET_PICTURES), output_names(images), strict=False)
        if images.where(place) not in damaged
    ]
    if not chosen:
        return
    before = [images.load(place) / 255 for place, _ in chosen]
    after = []
    for _, name in chosen:
        with Image.open(out / name) as picture:
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            after.append(pixels.reshape(picture.height, picture.width, -1).permute(2, 0, 1) / 255)
    write_bytes(out / SHEET, sheet({"before": before, "after": after}, {"before": [name for _, name in chosen]}))


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
