"""A study's pictures on one device: whole epochs as the loader orders them, augmented in a few batched passes.

Order, and which condition each picture is under, are those of `condconv train`; so is validation, picture by picture.
Flips, shifts and noise are drawn anew, from a generator of (seed, epoch): the same for every network of that seed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from condconv.data import EpochSampler, ImageView, SampleKey, Source, sample_seed
from condconv.data.source import ImageSet, Subset, TensorImages
from condconv.runs.config import TrainConfig

LARGEST_BATCH = 500
"""Images of one batch in validation."""
KEPT = 12
"""Epochs that are kept for other networks of the same seed."""


class Pictures:
    """Training epochs and validation images of one configuration on a device.

    Args:
        source: in memory, limited and under the conditions of the settings.
        config: batch size and augmentation.
        device: where everything lies.
    """

    def __init__(self, source: Source, config: TrainConfig, device: torch.device) -> None:
        if not source.native or config.auto_augment or config.mixup:
            raise ValueError(f"{source.name}: only pictures of one size, cropped and mirrored, are made in batches")
        assert isinstance(source.train, TensorImages)
        self.source, self.device, self.batch_size = source, device, config.batch_size
        self.mean, self.std = (torch.tensor(v, device=device)[:, None, None] for v in (source.mean, source.std))
        self.shift = max(1, min(source.image_size) // 8) if config.random_crop else 0
        self.images, self.labels = source.train.images.to(device), source.train.labels.to(device)
        view = ImageView(source, train=False)
        images = torch.stack([view[SampleKey(0, index)].image for index in range(len(view))])
        batch = math.gcd(len(view), LARGEST_BATCH)
        self.val_images = images.to(device).unflatten(0, (-1, batch))  # (batches, B, C, H, W)
        self.val_labels = source.val.labels.to(device).unflatten(0, (-1, batch))
        self._kept: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return len(self.labels) // self.batch_size

    def epoch(self, seed: int, number: int) -> tuple[Tensor, Tensor]:
        """Images f32 (steps, B, C, H, W) and labels (steps, B) of an epoch."""
        key = seed, number
        if key not in self._kept:
            self._kept[key] = self._made(seed, number)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def _made(self, seed: int, number: int) -> tuple[Tensor, Tensor]:
        sampler = EpochSampler(len(self.labels), shuffle=True, seed=seed, multiple_of=self.batch_size)
        sampler.set_epoch(number)
        order = torch.tensor([key.place for key in sampler])
        generator = torch.Generator(self.device).manual_seed(sample_seed(seed, number, len(self.labels)))
        chosen = order.to(self.device)
        images = self._augmented(self.images[chosen], generator).to(torch.float32).div_(255)
        # The function that seeds one sample seeds all of them: numpy's 64-bit numbers wrap as its mask does.
        seeds = sample_seed(seed, number, order.numpy().astype(np.uint64))  # type: ignore[arg-type]
        images = self._under(images, seeds, generator).sub_(self.mean).div_(self.std)
        return images.unflatten(0, (self.steps, -1)), self.labels[chosen].unflatten(0, (self.steps, -1))

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Shifts and mirror images of uint8 (N, C, H, W)."""
        n, channels, height, width = images.shape
        if self.shift:
            top, left = torch.randint(2 * self.shift + 1, (2, n, 1), generator=generator, device=self.device)
            rows = top + torch.arange(height, device=self.device)  # (N, H)
            columns = left + torch.arange(width, device=self.device)
            padded = F.pad(images, (self.shift,) * 4)
            places = torch.arange(n, device=self.device)[:, None, None, None]
            planes = torch.arange(channels, device=self.device)[None, :, None, None]
            images = padded[places, planes, rows[:, None, :, None], columns[:, None, None, :]]
        if self.source.flip:
            mirrored = torch.rand((n, 1, 1, 1), generator=generator, device=self.device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        return images

    def _under(self, images: Tensor, seeds: int, generator: torch.Generator) -> Tensor:
        """Each of the images (N, C, H, W) under the condition that its seed chooses."""
        conditions = self.source.conditions
        if conditions is None:
            return images
        which = torch.from_numpy(np.asarray(conditions.of(seeds)).astype(np.int64)).to(self.device)
        for place in range(len(conditions.names)):
            mine = (which == place).nonzero().squeeze(1)
            images[mine] = conditions.apply(place, images[mine], self.mean, self.std, generator)
        return images

    def all_under(self, condition: str) -> Tensor:
        """All validation images under one condition, in batches as `val_images`."""
        assert isinstance(self.source.val, TensorImages)
        conditions = self.source.under(condition).conditions
        assert conditions is not None
        images = self.source.val.images.to(self.device, torch.float32).div_(255)
        generator = torch.Generator(self.device).manual_seed(0)
        images = conditions.apply(0, images, self.mean, self.std, generator)
        return images.sub(self.mean).div_(self.std).unflatten(0, self.val_labels.shape)


def in_memory(source: Source, pool: Executor) -> Source:
    """The source with all its images decoded, by the processes of a pool."""
    return replace(source, train=_decoded(source.train, pool), val=_decoded(source.val, pool))


def _decoded(images: ImageSet, pool: Executor) -> ImageSet:
    if isinstance(images, TensorImages):
        return images
    parts = [Subset(images, part) for part in torch.arange(len(images)).split(2500)]
    loaded = torch.from_numpy(np.concatenate(list(pool.map(_stacked, parts))))
    return TensorImages(loaded, images.labels, images.where(0))


def _stacked(images: ImageSet) -> np.ndarray:
    return torch.stack([images.load(index) for index in range(len(images))]).numpy()
