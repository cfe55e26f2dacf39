"""Images with any number of classes each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from condconv.data import IGNORED, ImageView
from condconv.data.views import View


class TaggedSample(NamedTuple):
    """A `condconv.data.Sample` whose target is f32 (classes,): 1 for each class of the image, all `IGNORED` for none
    that is known.
    """

    image: Tensor
    tags: Tensor
    place: int
    decoded: bool


class TagView(View[TaggedSample]):
    """The images of an `ImageView` with all their classes."""

    def __init__(self, view: ImageView, classes: int) -> None:
        super().__init__(view.images, train=view.train, seed=view.seed, skip_bad=view.skip_bad)
        self.view = view
        self.unknown = torch.full((classes,), float(IGNORED))

    def sample(self, image: Tensor, found: int, place: int, drawn: int) -> TaggedSample:
        """See `View.sample`."""
        prepared = self.view.sample(image, found, place, drawn)
        tags = self.images.target(found)
        return TaggedSample(
            prepared.image, tags if isinstance(tags, Tensor) else self.unknown, place, prepared.decoded
        )  # fmt: skip

    def blank(self, place: int, decoded: bool) -> TaggedSample:
        """See `View.blank`."""
        return TaggedSample(self.view.blank(place, decoded).image, self.unknown, place, decoded)


def known(tags: Tensor) -> Tensor:
    """Which images count, bool (B,): those whose classes (B, classes) are known."""
    return tags[:, 0] != IGNORED
