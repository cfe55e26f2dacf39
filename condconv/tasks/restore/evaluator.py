"""What a restorer makes of the validation pictures: how close it comes, by degradation and strength, and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from condconv.data import IGNORED
from condconv.tasks.restore.quality import psnr, ssim

EXAMPLES = 1
"""Pictures of each group that are shown."""


class PictureQuality(NamedTuple):
    """One picture: which, its group, the strength of its degradation; PSNR in dB and SSIM before and after."""

    place: int
    group: int
    strength: float
    psnr_before: float
    ssim_before: float
    psnr: float
    ssim: float


class Example(NamedTuple):
    """One picture, each (C, H, W) on [0, 1]."""

    quality: PictureQuality
    degraded: Tensor
    restored: Tensor
    clean: Tensor


@dataclass(frozen=True)
class Restored:
    """All pictures that count, in their order, and some of each group of `groups`."""

    groups: tuple[str, ...]
    pictures: list[PictureQuality]
    examples: list[Example]

    @property
    def score(self) -> float:
        """Mean PSNR, dB."""
        return self.mean("psnr")

    def mean(self, column: str, group: int | None = None) -> float:
        """The mean of a column of `PictureQuality`, of one group or of all; NaN for none."""
        found = [getattr(each, column) for each in self.pictures if group in (None, each.group)]
        return fmean(found) if found else float("nan")

    def of_group(self, group: int) -> int:
        """How many pictures."""
        return sum(each.group == group for each in self.pictures)


class RestorationEvaluator:
    """Adds up the pictures that a network restores."""

    def __init__(self, groups: tuple[str, ...]) -> None:
        self.groups = groups
        self.pictures: list[PictureQuality] = []
        self.examples: list[Example] = []

    def add(self, output: Any, batch: Sequence[Any]) -> None:
        """Add restored pictures (B, C, H, W)."""
        images, clean, places, _, groups, strengths = (each.cpu() for each in batch)
        keep = groups != IGNORED
        if not bool(keep.any()):
            return
        restored, images, clean = (each[keep] for each in (output.float().cpu().clamp(0, 1), images, clean))
        columns = (
            places[keep], groups[keep], strengths[keep], psnr(images, clean), ssim(images, clean),
            psnr(restored, clean), ssim(restored, clean),
        )  # fmt: skip
        for index, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            found = PictureQuality(*values)
            self.pictures.append(found)
            if sum(example.quality.group == found.group for example in self.examples) < EXAMPLES:
                self.examples.append(Example(found, images[index], restored[index], clean[index]))

    def found(self) -> Restored:
        """See `Restored`."""
        return Restored(self.groups, self.pictures, sorted(self.examples, key=lambda each: each.quality.group))
