"""What every data source offers: labelled images by index, a name for each, and what is known about the set.

Access is map-style on purpose: an epoch is then exactly a permutation of the indices, and a run that was interrupted
can go on at the very sample it stopped at.
"""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from condconv.data.conditions import Conditions, parse_conditions
from condconv.errors import DataError
from condconv.limits import limit


class ImageSet(ABC):
    """Labelled images by index."""

    labels: Tensor
    """Class of each image: int64 (N,)."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @abstractmethod
    def load(self, index: int) -> Tensor:
        """The image as stored: uint8 (C, H, W). Raises `DataError`, naming the file, where it cannot be read."""

    @abstractmethod
    def where(self, index: int) -> str:
        """File (and sample) of the image, for messages."""

    def target(self, index: int) -> Any:
        """What there is to find in the image: its class; some sets have more."""
        return int(self.labels[index])


class TensorImages(ImageSet):
    """Images that fit in memory: `images` uint8 (N, C, H, W), `labels` int64 (N,), `origin` the file they came from."""

    def __init__(self, images: Tensor, labels: Tensor, origin: str) -> None:
        self.images = images
        self.labels = labels
        self.origin = origin

    def load(self, index: int) -> Tensor:
        """See `ImageSet.load`."""
        return self.images[index]

    def where(self, index: int) -> str:
        """See `ImageSet.where`."""
        return f"{self.origin}, image {index}"


class Subset(ImageSet):
    """Some images of another set, in the order of `indices`."""

    def __init__(self, images: ImageSet, indices: Sequence[int] | Tensor) -> None:
        self.images = images
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.labels = images.labels[self.indices]

    def load(self, index: int) -> Tensor:
        """See `ImageSet.load`."""
        return self.images.load(int(self.indices[index]))

    def where(self, index: int) -> str:
        """See `ImageSet.where`."""
        return self.images.where(int(self.indices[index]))

    def target(self, index: int) -> Any:
        """See `ImageSet.target`."""
        return self.images.target(int(self.indices[index]))


@dataclass(frozen=True)
class Source:
    """A training and a validation set of the same classes.

    `image_size` is (H, W) of what the network gets. `native` says that the stored images have that size; otherwise they
    are cropped and resized to it. `flip` says that a mirrored image keeps its class. `mean` and `std` have one value
    per channel, on [0, 1]. `skipped` lists what was left out because the caller asked for bad samples to be skipped.
    `conditions` are those that the images are put under, in training and validation.
    """

    name: str
    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    native: bool
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[str, ...] = field(default=())
    conditions: Conditions | None = None

    @property
    def in_memory(self) -> bool:
        """Whether loading an image costs next to nothing, so that worker processes would not pay."""
        return isinstance(self.train, TensorImages)

    def limited(self, train: int | None, val: int | None) -> Source:
        """The source with at most `train` and `val` images: a fixed random subset, the same for every seed."""
        return replace(self, train=_subset(self.train, train), val=_subset(self.val, val))

    def under(self, conditions: str | None) -> Source:
        """The source with its images under the conditions of that text (see `parse_conditions`); none where None."""
        return self if conditions is None else replace(self, conditions=parse_conditions(conditions, self.image_size))

    def resized(self, side: int | None) -> Source:
        """The source with images of `side` x `side` pixels for the network; as it is where None."""
        if side is None:
            return self
        return replace(self, image_size=(side, side), native=self.native and self.image_size == (side, side))


def default_workers(source: Source) -> int:
    """No processes for a set in memory, else one for each core up to eight."""
    return 0 if source.in_memory else min(8, os.cpu_count() or 1)


def _subset(images: ImageSet, limit: int | None) -> ImageSet:
    if limit is None or limit >= len(images):
        return images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:limit].sort().values
    if isinstance(images, TensorImages):
        return TensorImages(images.images[chosen], images.labels[chosen], f"{images.origin} (subset)")
    return Subset(images, chosen)


def require_class_names(where: object, names: Sequence[str]) -> None:
    """Raise `DataError` for names that tables and reports could not hold, that occur twice, or that are too many."""
    if len(names) > limit("max_classes"):
        raise DataError(f"{where}: {len(names)} classes; the limit is CONDCONV_MAX_CLASSES={limit('max_classes')}")
    for name in names:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise DataError(f"{where}: class name {name!r} is not UTF-8, or has a control character in it; rename it")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: class name {twice[0]!r} occurs {Counter(names)[twice[0]]} times; each may once")


def require_classes(where: str, classes: Sequence[str], train: ImageSet) -> None:
    """Raise `DataError` unless the training set is not empty and has images of at least two classes."""
    if len(train) == 0:
        raise DataError(f"{where}: the training set is empty; at least one image of each of two classes is needed")
    present = train.labels.unique()
    if len(present) < 2:
        only = classes[int(present[0])] if len(present) and int(present[0]) < len(classes) else "?"
        raise DataError(
            f"{where}: all {len(train)} training images are of one class, {only!r}; "
            "a classifier needs at least two classes"
        )


def require_labels(labels: Tensor, num_classes: int, images: ImageSet) -> None:
    """Raise `DataError`, naming the first sample, where a label is outside 0 … num_classes - 1."""
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"{images.where(index)}: label {int(labels[index])} is out of range; expected 0 … {num_classes - 1} "
            f"({len(wrong)} such samples)"
        )
