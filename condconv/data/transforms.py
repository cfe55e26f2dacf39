"""Augmentation and normalisation: stored image uint8 (C, H, W) → what the network gets, f32 (C, H, W).

All of it is torchvision's and draws from torch's generator alone, which the caller seeds for each sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
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


def train_transform(source: Source, auto_augment: str | None = None, random_crop: bool = True) -> Transform:
    """Random crop (padded for small stored sizes, resized otherwise) or the part that validation sees, mirror where
    the source allows, the learned augmentation of that name, normalise.
    """
    height, width = source.image_size
    crop: list[Transform]
    if not random_crop:
        crop = _val_crop(source)
    elif source.native:
        crop = [v2.RandomCrop((height, width), padding=max(1, min(height, width) // 8))]
    else:
        crop = [v2.RandomResizedCrop((height, width), antialias=True)]
    flip: list[Transform] = [v2.RandomHorizontalFlip()] if source.flip else []
    learned = [] if auto_augment is None else [auto_augments[auto_augment]()]
    return v2.Compose([*crop, *flip, *learned, *_normalise(source)])


def val_transform(source: Source) -> Transform:
    """The stored image as it is, or the middle 87.5 % of the resized one; normalised."""
    return v2.Compose([*_val_crop(source), *_normalise(source)])


def _val_crop(source: Source) -> list[Transform]:
    if source.native:
        return []
    height, width = source.image_size
    return [v2.Resize(round(min(height, width) / 0.875), antialias=True), v2.CenterCrop((height, width))]


def _normalise(source: Source) -> list[Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(source.mean), list(source.std))]
