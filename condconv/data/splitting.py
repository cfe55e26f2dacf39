"""A training and a validation half of one set of images, the same whatever the run's seed is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from condconv.data.source import ImageSet, Subset
from condconv.errors import DataError

_MOST_NAMED = 5


def split_by_class(images: ImageSet, classes: Sequence[str], fraction: float, where: str) -> tuple[Subset, Subset]:
    """Take `fraction` of the images of each class for validation, at random, and at least one of each.

    Raises:
        DataError: a class has one image alone, so that it would be missing in one of the halves.
    """
    counts = images.labels.bincount(minlength=len(classes))
    single = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 1]
    if single:
        raise DataError(
            f"{where}: --val-fraction {fraction:g} would leave {len(single)} of {len(classes)} classes empty, in "
            f"training or in validation, as they have one image each: {named(single)}; add images of them, take them "
            "out, or pass --val-dir"
        )
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(len(images), dtype=torch.bool)
    for label, count in enumerate(counts.tolist()):
        if count:
            members = (images.labels == label).nonzero().flatten()
            taken = min(count - 1, max(1, round(count * fraction)))
            chosen[members[torch.randperm(count, generator=generator)[:taken]]] = True
    return Subset(images, (~chosen).nonzero().flatten()), Subset(images, chosen.nonzero().flatten())


def named(names: Sequence[str]) -> str:
    """The first few names, and that there are more."""
    return ", ".join(map(repr, names[:_MOST_NAMED])) + (", …" if len(names) > _MOST_NAMED else "")
