"""From a source to what a loader reads: augmentation and normalisation, each sample's randomness its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from condconv.data.sampling import PADDING, SampleKey, sample_seed
from condconv.data.source import ImageSet, Source
from condconv.errors import DataError

IGNORED = -1
"""Label of a place that counts for nothing: padding, or a validation image that could not be decoded."""


class Sample(NamedTuple):
    """One place of a batch: image f32 (C, H, W), label, index asked for (`place`), whether it could be decoded."""

    image: Tensor
    label: int
    place: int
    decoded: bool


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's CPU generator at `seed`, and put it back afterwards (torchvision's transforms draw from it)."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def train_transform(source: Source) -> Callable[[Tensor], Tensor]:
    """Random crop (padded for small stored sizes, resized otherwise), mirror where the source allows, normalise."""
    height, width = source.image_size
    crop: list[Callable[[Tensor], Tensor]]
    if source.native:
        crop = [v2.RandomCrop((height, width), padding=max(1, min(height, width) // 8))]
    else:
        crop = [v2.RandomResizedCrop((height, width), antialias=True)]
    flip: list[Callable[[Tensor], Tensor]] = [v2.RandomHorizontalFlip()] if source.flip else []
    return v2.Compose([*crop, *flip, *_normalise(source)])


def val_transform(source: Source) -> Callable[[Tensor], Tensor]:
    """The stored image as it is, or the middle 87.5 % of the resized one; normalised."""
    if source.native:
        return v2.Compose(_normalise(source))
    height, width = source.image_size
    return v2.Compose(
        [
            v2.Resize(round(min(height, width) / 0.875), antialias=True),
            v2.CenterCrop((height, width)),
            *_normalise(source),
        ]
    )


def _normalise(source: Source) -> list[Callable[[Tensor], Tensor]]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(source.mean), list(source.std))]


class ImageView(Dataset[Sample]):
    """A data set for a loader, asked by `SampleKey`.

    With `skip_bad`, an image that cannot be decoded is replaced by the next one that can (training), or ignored
    (validation), and reported through `Sample.decoded`; without, its `DataError` is raised.
    """

    def __init__(self, source: Source, *, train: bool, seed: int = 0, skip_bad: bool = False) -> None:
        self.images: ImageSet = source.train if train else source.val
        self.transform = train_transform(source) if train else val_transform(source)
        self.image_shape = (source.channels, *source.image_size)
        self.native = source.native
        self.train = train
        self.seed = seed
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of a key; its augmentation is a function of (seed, epoch, index)."""
        epoch, index = key
        if index == PADDING:
            return Sample(torch.zeros(self.image_shape), IGNORED, PADDING, True)
        found, image = self._load(index)
        if image is None:
            return Sample(torch.zeros(self.image_shape), IGNORED, index, False)
        if self.native and tuple(image.shape[1:]) != self.image_shape[1:]:
            image = v2.functional.resize(image, list(self.image_shape[1:]), antialias=True)
        if self.train:
            with seeded(sample_seed(self.seed, epoch, index)):
                image = self.transform(image)
        else:
            image = self.transform(image)
        return Sample(image, int(self.images.labels[found]), index, found == index)

    def _load(self, index: int) -> tuple[int, Tensor | None]:
        if not self.skip_bad:
            return index, self.images.load(index)
        for step in range(len(self) if self.train else 1):
            candidate = (index + step) % len(self)
            try:
                return candidate, self.images.load(candidate)
            except DataError:
                continue
        if self.train:
            raise DataError(f"{self.images.where(index)}: not one of the {len(self)} training images can be decoded")
        return index, None
