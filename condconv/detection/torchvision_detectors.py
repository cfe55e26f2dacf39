"""torchvision's detectors by name, without weights: they come from a file, as those of any other network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models import detection as families
from torchvision.models import get_model, list_models
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from condconv.detection.padding import route_over_images
from condconv.errors import UnknownNameError, argument_error
from condconv.models.build import TORCHVISION
from condconv.registry import unknown_name_message

LEAST_SCORE = 0.001
"""Detections below are dropped; as low as average precision wants it."""
_OTHER_HEADS = ("keypointrcnn", "maskrcnn")


def torchvision_detectors() -> list[str]:
    """The names, which begin with "torchvision/"."""
    names = list_models(module=families)
    return [f"{TORCHVISION}{name}" for name in names if not name.startswith(_OTHER_HEADS)]


def build(name: str, given: Mapping[str, Any]) -> nn.Module:
    """A detector that takes images as they are, of any size, with values in [0, 1].

    Args:
        name: one of `torchvision_detectors`.
        given: arguments that differ from the defaults of `create_model`.

    Raises:
        UnknownNameError: there is none of that name.
        ArgumentError: an argument that means nothing to it.
    """
    if name not in torchvision_detectors():
        raise UnknownNameError(unknown_name_message("detector of torchvision", name, torchvision_detectors()))
    arguments = dict(given)
    classes = arguments.pop("num_classes", 90)
    for argument, value in arguments.items():
        rule, remedy = "is no argument of torchvision's detectors", "known: num_classes"
        raise argument_error(f"create_model('{name}')", argument, value, rule, remedy)
    model: Any = get_model(
        name.removeprefix(TORCHVISION), weights=None, weights_backbone=None, num_classes=classes + 1
    )  # the background is one
    model.transform = _AsGiven.like(model.transform)
    getattr(model, "roi_heads", model).score_thresh = LEAST_SCORE
    return route_over_images(model)


class _AsGiven(GeneralizedRCNNTransform):
    """Normalises and batches images, and leaves their size as it is."""

    @classmethod
    def like(cls, other: GeneralizedRCNNTransform) -> _AsGiven:
        """With the normalisation of another one."""
        return cls(other.min_size, other.max_size, other.image_mean, other.image_std, other.size_divisible)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Nothing."""
        return image, target
