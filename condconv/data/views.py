"""From a source to what a loader reads: a sample for each key, its randomness its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from condconv.data.sampling import PADDING, SampleKey, sample_seed
from condconv.data.source import ImageSet, Source
from condconv.data.transforms import Normalisation, augmentation, val_crop
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


class ImageView(Dataset[Sample]):
    """A data set for a loader, asked by `SampleKey`.

    With `skip_bad`, an image that cannot be decoded is replaced by the next one that can (training), or ignored
    (validation), and reported through `Sample.decoded`; without, its `DataError` is raised.
    """

    def __init__(
        self,
        source: Source,
        *,
        train: bool,
        seed: int = 0,
        skip_bad: bool = False,
        auto_augment: str | None = None,
        random_crop: bool = True,
    ) -> None:
        self.images: ImageSet = source.train if train else source.val
        self.augment = augmentation(source, auto_augment, random_crop) if train else val_crop(source)
        self.normalise = Normalisation(source)
        self.image_shape = (source.channels, *source.image_size)
        self.native = source.native
        self.train = train
        self.seed = seed
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of a key; its augmentation is a function of (seed, epoch, index), its condition too, which in
        validation is one of the index alone.
        """
        epoch, index = key
        if index == PADDING:
            return Sample(torch.zeros(self.image_shape), IGNORED, PADDING, True)
        found, image = self._load(index)
        if image is None:
            return Sample(torch.zeros(self.image_shape), IGNORED, index, False)
        if self.native and tuple(image.shape[1:]) != self.image_shape[1:]:
            image = v2.functional.resize(image, list(self.image_shape[1:]), antialias=True)
        if self.train:
            with seeded(drawn := sample_seed(self.seed, epoch, index)):
                image = self.augment(image)
        else:
            drawn = sample_seed(0, 0, index)
            image = self.augment(image)
        image = self.normalise(image, drawn)
        return Sample(image, int(self.images.labels[found]), index, found == index)

    def condition_of(self, index: int) -> int:
        """Of a validation image: which of the source's conditions it is under."""
        assert self.normalise.conditions is not None and not self.train
        return self.normalise.conditions.of(sample_seed(0, 0, index))

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
