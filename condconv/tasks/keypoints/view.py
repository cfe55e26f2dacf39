"""From an image and a box to a sample: cropped, turned and mirrored together with its joints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from condconv.data import Source
from condconv.data.transforms import Normalisation
from condconv.data.views import View, seeded
from condconv.tasks.keypoints import geometry
from condconv.tasks.keypoints.instances import Instance, whole_image
from condconv.tasks.keypoints.joints import mirror_of

SCALE_DEVIATION, DEGREES_DEVIATION = 0.35, 45.0
"""Of the random scale and angle, cut at one and at two deviations (HRNet's); turned are three of five."""
_TURNED = 0.6


class KeypointSample(NamedTuple):
    """One place of a batch: input f32 (C, H, W), its joints (K, 3) in the pixels of that, the map (2, 3) from there to
    the image, the object's area there, and which joint is which in a mirror (K,).
    """

    image: Tensor
    joints: Tensor
    place: int
    decoded: bool
    to_image: Tensor
    area: float
    mirror: Tensor


class KeypointView(View[KeypointSample]):
    """Each instance by itself; in training scaled, turned and, where the joints' names say how, mirrored."""

    def __init__(self, source: Source, *, train: bool, seed: int = 0, skip_bad: bool = False) -> None:
        super().__init__(source.train if train else source.val, train=train, seed=seed, skip_bad=skip_bad)
        self.size = source.image_size
        self.image_shape = (source.channels, *source.image_size)
        self.joints = len(source.classes)
        self.normalise = Normalisation(source)
        mirror = mirror_of(source.classes)
        self.mirrors = mirror is not None
        self.mirror = torch.tensor(mirror or range(self.joints))

    def sample(self, image: Tensor, found: int, place: int, drawn: int) -> KeypointSample:
        """See `View.sample`."""
        target = self.images.target(found)
        _, height, width = image.shape
        instance = target if isinstance(target, Instance) else whole_image(height, width, self.joints)
        scale, degrees, mirrored = self._draw(drawn) if self.train else (1.0, 0.0, False)
        to_image = geometry.input_to_image(instance.box, self.size, scale, degrees)
        pixels = geometry.warp(image, to_image, self.size)
        positions = geometry.apply(geometry.inverse(to_image), instance.joints[:, :2])
        joints = torch.cat([positions, instance.joints[:, 2:]], dim=1)
        if mirrored:
            pixels, joints = pixels.flip(2), joints[self.mirror]
            joints[:, 0] = self.size[1] - 1 - joints[:, 0]
        image = self.normalise(pixels, drawn)
        return KeypointSample(image, joints, place, found == place, to_image, instance.area, self.mirror)

    def _draw(self, seed: int) -> tuple[float, float, bool]:
        """Scale, degrees, and whether it is mirrored."""
        with seeded(seed):
            scale, degrees = torch.randn(2).tolist()
            turned, mirrored = torch.rand(2).tolist()
        scale = 1 + min(max(SCALE_DEVIATION * scale, -SCALE_DEVIATION), SCALE_DEVIATION)
        degrees = min(max(degrees, -2.0), 2.0) * DEGREES_DEVIATION if turned < _TURNED else 0.0
        return scale, degrees, self.mirrors and mirrored < 0.5

    def blank(self, place: int, decoded: bool) -> KeypointSample:
        """See `View.blank`."""
        joints, to_image = torch.zeros(self.joints, 3), torch.eye(2, 3)
        return KeypointSample(torch.zeros(self.image_shape), joints, place, decoded, to_image, 0.0, self.mirror)
