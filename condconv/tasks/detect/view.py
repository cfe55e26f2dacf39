"""From an image with objects to a sample: cropped, mirrored and resized together with its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from condconv.data import Source
from condconv.data.transforms import Normalisation
from condconv.data.views import View, seeded
from condconv.tasks.detect.objects import Objects, no_objects


class DetectionSample(NamedTuple):
    """One place of a batch: image f32 (C, H, W), its objects in the pixels of that, and the size (H, W) that it had."""

    image: Tensor
    objects: Objects
    place: int
    decoded: bool
    size: tuple[int, int]


class DetectionView(View[DetectionSample]):
    """Images of a fixed size, whose aspect ratio is not kept, as SSD wants them.

    In training SSD's crops (`RandomIoUCrop` of torchvision: a window that covers a given share of some object; objects
    whose centre is outside are dropped) and mirroring.
    """

    def __init__(self, source: Source, *, train: bool, seed: int = 0, skip_bad: bool = False) -> None:
        super().__init__(source.train if train else source.val, train=train, seed=seed, skip_bad=skip_bad)
        self.size = source.image_size
        self.image_shape = (source.channels, *source.image_size)
        self.normalise = Normalisation(source)
        resize = v2.Resize(list(source.image_size), antialias=True)
        crop = [v2.RandomIoUCrop(), v2.RandomHorizontalFlip()] if train else []
        self.transform = v2.Compose([*crop, resize, v2.SanitizeBoundingBoxes(labels_getter=_others)])

    def sample(self, image: Tensor, found: int, place: int, drawn: int) -> DetectionSample:
        """See `View.sample`."""
        target = self.images.target(found)
        objects = target if isinstance(target, Objects) else no_objects()  # images of any origin, to predict
        height, width = image.shape[1:]
        entry = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(objects.boxes.clone(), format="XYXY", canvas_size=(height, width)),
            "rest": torch.arange(len(objects.boxes)),
        }
        # Crops around objects need one.
        transform = self.transform if len(objects.boxes) or not self.train else v2.Resize(list(self.size))
        with seeded(drawn):
            entry = transform(entry)
        kept = objects.kept(entry["rest"])
        boxes = entry["boxes"].as_subclass(Tensor)
        pixels = self.normalise(entry["image"].as_subclass(Tensor), drawn)
        return DetectionSample(pixels, kept._replace(boxes=boxes), place, found == place, (height, width))

    def blank(self, place: int, decoded: bool) -> DetectionSample:
        """See `View.blank`."""
        return DetectionSample(torch.zeros(self.image_shape), no_objects(), place, decoded, (0, 0))


def collate(samples: Sequence[DetectionSample]) -> tuple[Any, ...]:
    """Images (B, C, H, W), the objects of each, places (B,), decoded (B,), sizes (B, 2)."""
    images, objects, places, decoded, sizes = zip(*samples, strict=True)
    return torch.stack(images), list(objects), torch.tensor(places), torch.tensor(decoded), torch.tensor(sizes)


def _others(entry: dict[str, Any]) -> Tensor:
    """What is dropped with a box."""
    rest: Tensor = entry["rest"]
    return rest
