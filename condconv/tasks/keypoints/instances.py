"""Images with one instance each: an image with three people is there three times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.data.image_folder import FileImages


class Instance(NamedTuple):
    """One person, animal or thing.

    `joints` f32 (K, 3): x and y in pixels, and COCO's visibility: 0 not labelled, 1 labelled but hidden, 2 seen. `box`
    f32 (4,): x, y, width, height. `area`: square pixels, by which distances are judged. `image`: which one it is in.
    """

    joints: Tensor
    box: Tensor
    area: float
    image: int


class InstanceImages(FileImages):
    """The image file of each instance."""

    def __init__(self, files: Sequence[Path], instances: Sequence[Instance]) -> None:
        super().__init__(files, [0] * len(files))
        self.instances = list(instances)

    def target(self, index: int) -> Instance:
        """See `ImageSet.target`."""
        return self.instances[index]


def whole_image(height: int, width: int, joints: int) -> Instance:
    """What is in an image of which nothing is known: anything, anywhere."""
    return Instance(torch.zeros(joints, 3), torch.tensor([0.0, 0.0, width, height]), float(height * width), 0)
