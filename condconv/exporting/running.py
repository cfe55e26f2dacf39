"""An exported file as a network: of any number of images, whatever number the file itself takes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.data import ImageSet, Source
from condconv.errors import ArgumentError, CheckpointError
from condconv.exporting.about import About
from condconv.exporting.formats import open_exported


class ExportedNetwork(nn.Module):
    """A file of `condconv.export` in its runtime, on the CPU.

    Args:
        path: .onnx, .xml, .pte or .pt2.

    Raises:
        ArgumentError: the runtime is not installed.
        CheckpointError: no such file, one that the runtime cannot open, or one that `condconv.export` did not write.
    """

    digest: Tensor
    """SHA-256 of the file and of what belongs to it: (32,) uint8. It tells files apart as weights do networks."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        text, self._run = open_exported(path)
        if text is None:
            raise CheckpointError(
                f"{path}: was not written by condconv export: it does not say how its images are prepared; export the "
                "network that it comes from"
            )
        try:
            self.about = About.from_json(text)
        except ValueError as error:
            raise CheckpointError(f"{path}: what it says of itself cannot be read ({error}); export again") from error
        parts = hashlib.sha256()
        for part in sorted({path, *path.parent.glob(f"{path.stem}.bin")}):
            parts.update(part.read_bytes())
        self.register_buffer("digest", torch.frombuffer(bytearray(parts.digest()), dtype=torch.uint8))

    def __reduce__(self) -> tuple[type[ExportedNetwork], tuple[Path]]:
        """A copy, or one in another process, opens the file again."""
        return ExportedNetwork, (self.path,)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images (B, C, *space), prepared as `about` says → the output, or a list of them."""
        images = images.cpu().float().contiguous()
        if self.about.batch is None:
            outputs = self._run(images)
        else:
            calls = [self._padded(chunk, self.about.batch) for chunk in images.split(self.about.batch)]
            outputs = [torch.cat(parts) for parts in zip(*calls, strict=True)]
        return outputs[0] if len(outputs) == 1 else outputs

    def source(self, images: ImageSet) -> Source:
        """Images without labels, prepared as `about` says.

        Raises:
            ArgumentError: the output is no classification.
        """
        about = self.about
        if not about.classes:
            raise ArgumentError(f"{self.path}: {about.name} gives no scores of classes; run it with its runtime")
        channels, height, width = about.input_size
        return Source(
            self.path.name, images, images, about.classes, channels, (height, width), native=about.native, flip=False,
            mean=about.mean, std=about.std,
        )  # fmt: skip

    def _padded(self, chunk: Tensor, batch: int) -> list[Tensor]:
        """The outputs for at most `batch` images, made up to that number with black ones."""
        missing = chunk.new_zeros((batch - len(chunk), *chunk.shape[1:]))
        return [y[: len(chunk)] for y in self._run(torch.cat([chunk, missing]))]
