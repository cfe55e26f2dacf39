"""Augmentation and normalisation: stored image uint8 (C, H, W) → what the network gets, f32 (C, H, W).

Augmentation draws from torch's generator alone, which the caller seeds for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import AutoAugmentPolicy, v2

from condconv.data.source import Source
from condconv.registry import Registry

Transform = Callable[[Tensor], Tensor]

auto_augments: Registry[Callable[[], Transform]] = Registry("augmentation")
auto_augments.register("imagenet", lambda: v2.AutoAugment(AutoAugmentPolicy.IMAGENET))
auto_augments.register("cifar10", lambda: v2.AutoAugment(AutoAugmentPolicy.CIFAR10))
auto_augments.register("svhn", lambda: v2.AutoAugment(AutoAugmentPolicy.SVHN))
auto_augments.register("rand", v2.RandAugment)
auto_augments.register("trivial", v2.TrivialAugmentWide)


def augmentation(source: Source, auto_augment: str | None = None, random_crop: bool = True) -> Transform:
    """Random crop (padded for small stored sizes, resized otherwise) or the part that validation sees, mirror where
    the source allows, the learned augmentation of that name: uint8 to uint8.
    """
    height, width = source.image_size
    crop: Transform
    if not random_crop:
        crop = val_crop(source)
    elif source.native:
        crop = RandomShift(max(1, min(height, width) // 8))
    else:
        crop = v2.RandomResizedCrop((height, width), antialias=True)
    flip: list[Transform] = [_mirror] if source.flip else []
    learned = [] if auto_augment is None else [auto_augments[auto_augment]()]
    return Steps([crop, *flip, *learned])


def val_crop(source: Source) -> Transform:
    """The stored image as it is, or the middle 87.5 % of the resized one: uint8 to uint8."""
    if source.native:
        return Steps([])
    height, width = source.image_size
    return Steps([v2.Resize(round(min(height, width) / 0.875), antialias=True), v2.CenterCrop((height, width))])


class RandomShift:
    """A crop of the image's own size, shifted by up to `most` pixels each way; zeros where there is nothing.

    Small images are augmented by the ten thousand each second: plain slices cost a tenth of torchvision's classes.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, image: Tensor) -> Tensor:
        """Shift an image (C, H, W)."""
        height, width = image.shape[1:]
        top, left = torch.randint(2 * self.most + 1, (2,)).tolist()
        padded = F.pad(image, (self.most,) * 4)
        return padded[:, top : top + height, left : left + width]


def _mirror(image: Tensor) -> Tensor:
    return image.flip(2) if torch.rand(()) < 0.5 else image


class Steps:
    """Some transforms after one another; an image as it is where there are none."""

    def __init__(self, steps: Sequence[Transform]) -> None:
        self.steps = list(steps)

    def __call__(self, image: Tensor) -> Tensor:
        """Transform an image (C, H, W)."""
        for step in self.steps:
            image = step(image)
        return image


class Normalisation:
    """From uint8 to f32: to [0, 1], under the source's conditions where it has some, to mean 0 and deviation 1."""

    def __init__(self, source: Source) -> None:
        self.mean = torch.tensor(source.mean)[:, None, None]
        self.std = torch.tensor(source.std)[:, None, None]
        self.conditions = source.conditions

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """The image (C, H, W); its condition is a function of the seed."""
        image = image.to(torch.float32).div_(255)
        if self.conditions is not None:
            image = self.conditions(image, self.mean, self.std, seed)
        return image.sub(self.mean).div_(self.std)
