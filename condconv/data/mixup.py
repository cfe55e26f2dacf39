"""Mixup: each training image is blended with another, and so are their labels.

Hongyi Zhang, Moustapha Cisse, Yann N. Dauphin, David Lopez-Paz: "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
https://arxiv.org/abs/1710.09412.

    x = λ xᵢ + (1 - λ) xⱼ,        λ = max(l, 1 - l),  l ~ Beta(α, α)

λ is each image's own and at least 1/2, as in the code of CondConv's authors. Partner and λ are drawn for the image, not
for the batch: they depend on (seed, epoch, index) alone, so that neither batch size nor workers nor processes change
them. The price is that an image is decoded twice in an epoch on average: once for itself, once as a partner.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from condconv.data.sampling import SampleKey, sample_seed
from condconv.data.views import ImageView, seeded

_STREAM = 1 << 62
"""Added to the index, so that the draws here are others than those of the image's augmentation."""


class MixedSample(NamedTuple):
    """A `Sample` with its partner's label, and the weight λ of its own label: f32 ()."""

    image: Tensor
    label: int
    place: int
    decoded: bool
    partner: int
    weight: Tensor


class MixupView(Dataset[MixedSample]):
    """The training images of a view, each blended with a partner. `alpha` > 0: the larger, the closer λ to 1/2."""

    def __init__(self, view: ImageView, alpha: float) -> None:
        self.view = view
        self.alpha = alpha

    def __len__(self) -> int:
        """Number of images."""
        return len(self.view)

    def __getitem__(self, key: SampleKey) -> MixedSample:
        """The sample of a key."""
        epoch, index = key
        with seeded(sample_seed(self.view.seed, epoch, _STREAM + index)):
            partner = int(torch.randint(len(self.view), ()))
            drawn = torch.distributions.Beta(self.alpha, self.alpha).sample()
        weight = torch.maximum(drawn, 1 - drawn)
        image, label, place, decoded = self.view[key]
        other = self.view[SampleKey(epoch, partner)]
        return MixedSample(torch.lerp(other.image, image, weight), label, place, decoded, other.label, weight)
