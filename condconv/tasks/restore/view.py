"""From a picture to a sample: a crop of it, degraded, and as it was."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from condconv.data import IGNORED, Source, sample_seed
from condconv.data.views import View, seeded
from condconv.errors import DataError
from condconv.tasks.restore.degradations import Degradations


class Pair(NamedTuple):
    """One place of a batch.

    `image` and `clean`: f32 (C, H, W) on [0, 1], the picture to restore and what it was; `group` and `strength` of its
    degradation, `IGNORED` for a blank one.
    """

    image: Tensor
    clean: Tensor
    place: int
    decoded: bool
    group: int
    strength: float


class PictureView(View[Pair]):
    """Random crops, mirrored half of the time, in training; else the middle. A picture that is too small is bad."""

    def __init__(
        self, source: Source, degradations: Degradations, *, train: bool, seed: int = 0, skip_bad: bool = False
    ) -> None:
        super().__init__(source.train if train else source.val, train=train, seed=seed, skip_bad=skip_bad)
        self.degradations = degradations
        self.channels = source.channels
        self.size = source.image_size

    def load(self, index: int) -> Tensor:
        """See `View.load`."""
        picture = super().load(index)
        height, width = picture.shape[1:]
        if height < self.size[0] or width < self.size[1]:
            raise DataError(
                f"{self.images.where(index)}: {height} x {width} pixels, and crops of {self.size[0]} x {self.size[1]} "
                "are wanted of it; pass a smaller --input-size, remove it, or pass --skip-bad-images"
            )
        return picture

    def sample(self, image: Tensor, found: int, place: int, drawn: int) -> Pair:
        """See `View.sample`."""
        clean = self._random_crop(image, drawn) if self.train else v2.functional.center_crop(image, list(self.size))
        degraded = self.degradations(clean, sample_seed(drawn, 0, 0))  # draws others than those of the crop
        image, clean = (each.to(torch.float32) / 255 for each in (degraded.picture, clean))
        return Pair(image, clean, place, found == place, degraded.group, degraded.strength)

    def _random_crop(self, image: Tensor, drawn: int) -> Tensor:
        sizes = list(zip(image.shape[1:], self.size, strict=True))
        with seeded(drawn):
            top, left = (int(torch.randint(have - want + 1, ())) for have, want in sizes)
            mirrored = bool(torch.rand(()) < 0.5)
        crop = image[:, top : top + self.size[0], left : left + self.size[1]]
        return crop.flip(2) if mirrored else crop

    def blank(self, place: int, decoded: bool) -> Pair:
        """See `View.blank`."""
        nothing = torch.zeros(self.channels, *self.size)
        return Pair(nothing, nothing, place, decoded, IGNORED, 0.0)
