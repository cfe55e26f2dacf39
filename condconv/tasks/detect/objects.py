"""Images with the objects that are in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.data.image_folder import FileImages


class Objects(NamedTuple):
    """The objects of one image, M of them.

    `boxes` f32 (M, 4) as x1, y1, x2, y2 in pixels; `labels` int64 (M,) from 1, 0 being the background; `areas` f32 (M,)
    square pixels, by which small objects are told from large ones; `crowd` bool (M,): a box around many objects, which
    counts for nothing.
    """

    boxes: Tensor
    labels: Tensor
    areas: Tensor
    crowd: Tensor

    def kept(self, keep: Tensor) -> Objects:
        """Those of a mask or of indices."""
        return Objects(*(part[keep] for part in self))


def no_objects() -> Objects:
    """An empty image."""
    boxes, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return Objects(boxes, labels, torch.zeros(0), torch.zeros(0, dtype=torch.bool))


class ObjectImages(FileImages):
    """Image files with their objects; `labels` has the class of most of them, `IGNORED` where there are none."""

    def __init__(self, files: Sequence[Path], objects: Sequence[Objects]) -> None:
        super().__init__(files, [_most(each.labels) for each in objects])
        self.objects = list(objects)

    def target(self, index: int) -> Objects:
        """See `ImageSet.target`."""
        return self.objects[index]


def _most(labels: Tensor) -> int:
    """The most frequent label, counted from 0; -1 (`IGNORED`) for none."""
    return int(labels.bincount().argmax()) - 1 if len(labels) else -1
