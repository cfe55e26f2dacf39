"""What a network finds of the validation instances, joint by joint, and how near that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from condconv.data import Source
from condconv.tasks.base import counted
from condconv.tasks.keypoints import geometry
from condconv.tasks.keypoints.heatmaps import decode
from condconv.tasks.keypoints.instances import Instance
from condconv.tasks.keypoints.scores import average_precision, errors, pck


def found_in(heatmaps: Tensor, to_image: Tensor) -> list[Tensor]:
    """A batch's joints (K, 3) each, in the pixels of the images and with the height of the peak, on the CPU."""
    joints = decode(heatmaps.float()).cpu()
    for each, matrix in zip(joints, to_image.cpu(), strict=True):
        each[:, :2] = geometry.apply(matrix, each[:, :2])
    return list(joints)


@dataclass(frozen=True)
class Located:
    """`places` of the instances that count, what they are and what was found, in the same order; the numbers."""

    names: tuple[str, ...]
    places: list[int]
    instances: list[Instance]
    joints: list[Tensor]
    summary: dict[str, float]
    distance: np.ndarray
    relative: np.ndarray

    @property
    def score(self) -> float:
        """Average precision."""
        return self.summary["ap"]


class KeypointEvaluator:
    """Collects joints."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.places: list[int] = []
        self.joints: list[Tensor] = []

    def add(self, output: Any, batch: Sequence[Any]) -> None:
        """Add what the network made of a batch."""
        _, _, places, _, to_image, *_ = batch
        found = found_in(output, to_image)
        for index in counted(batch):
            self.places.append(int(places[index]))
            self.joints.append(found[index])

    def found(self) -> Located:
        """See `Located`."""
        return located(self.source, self.places, self.joints)


def located(source: Source, places: list[int], joints: list[Tensor]) -> Located:
    """Compare joints with the instances at these places of the validation set."""
    instances = [source.val.target(place) for place in places]
    summary = average_precision(instances, joints, source.classes)
    distance, relative = errors(instances, joints)
    summary |= {"pck": pck(relative), "pixel_error": float(np.nanmean(distance))}
    return Located(source.classes, places, instances, joints, summary, distance, relative)
