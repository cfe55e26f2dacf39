"""From a source to what a loader reads: a sample for each key, its randomness its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

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


S = TypeVar("S", covariant=True)
"""What a view's samples are. They begin as `Sample` does: image, target, place, decoded."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's CPU generator at `seed`, and put it back afterwards (torchvision's transforms draw from it)."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


class View(Dataset[S], ABC):
    """A data set for a loader, asked by `SampleKey`: which image, and by which random numbers.

    With `skip_bad`, an image that cannot be decoded is replaced by the next one that can (training), or left blank
    (validation), and reported in the sample; without, its `DataError` is raised.

    Args:
        images: the set.
        train: whether samples are drawn anew in each epoch; else they depend on the index alone.
        seed: of the run.
        skip_bad: see above.
    """

    def __init__(self, images: ImageSet, *, train: bool, seed: int = 0, skip_bad: bool = False) -> None:
        self.images = images
        self.train = train
        self.seed = seed
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> S:
        """The sample of a key; what is random in it follows from (seed, epoch, index), in validation from the index."""
        epoch, index = key
        if index == PADDING:
            return self.blank(PADDING, True)
        found, image = self._load(index)
        if image is None:
            return self.blank(index, False)
        drawn = sample_seed(self.seed, epoch, index) if self.train else sample_seed(0, 0, index)
        return self.sample(image, found, index, drawn)

    @abstractmethod
    def sample(self, image: Tensor, found: int, place: int, drawn: int) -> S:
        """The sample of an image.

        Args:
            image: as stored, uint8 (C, H, W).
            found: its index.
            place: the index that was asked for: another one where that could not be decoded.
            drawn: seed of all that is random.
        """

    @abstractmethod
    def blank(self, place: int, decoded: bool) -> S:
        """A sample that counts for nothing."""

    def load(self, index: int) -> Tensor:
        """The image as stored: uint8 (C, H, W). Raises `DataError` where it cannot be used."""
        return self.images.load(index)

    def _load(self, index: int) -> tuple[int, Tensor | None]:
        if not self.skip_bad:
            return index, self.load(index)
        for step in range(len(self) if self.train else 1):
            candidate = (index + step) % len(self)
            try:
                return candidate, self.load(candidate)
            except DataError:
                continue
        if self.train:
            raise DataError(f"{self.images.where(index)}: not one of the {len(self)} training images can be decoded")
        return index, None


class ImageView(View[Sample]):
    """Images with their classes, augmented in training, normalised, under the source's conditions."""

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
        super().__init__(source.train if train else source.val, train=train, seed=seed, skip_bad=skip_bad)
        self.augment = augmentation(source, auto_augment, random_crop) if train else val_crop(source)
        self.normalise = Normalisation(source)
        self.image_shape = (source.channels, *source.image_size)
        self.native = source.native

    def sample(self, image: Tensor, found: int, place: int, drawn: int) -> Sample:
        """See `View.sample`."""
        if self.native and tuple(image.shape[1:]) != self.image_shape[1:]:
            image = v2.functional.resize(image, list(self.image_shape[1:]), antialias=True)
        if self.train:
            with seeded(drawn):
                image = self.augment(image)
        else:
            image = self.augment(image)
        return Sample(self.normalise(image, drawn), int(self.images.labels[found]), place, found == place)

    def blank(self, place: int, decoded: bool) -> Sample:
        """See `View.blank`."""
        return Sample(torch.zeros(self.image_shape), IGNORED, place, decoded)

    def condition_of(self, index: int) -> int:
        """Of a validation image: which of the source's conditions it is under."""
        assert self.normalise.conditions is not None and not self.train
        return self.normalise.conditions.of(sample_seed(0, 0, index))
