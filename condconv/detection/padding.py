"""torchvision's detectors, whose batches are padded to their largest image: routing over each image alone."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from condconv.errors import argument_error
from condconv.routers.valid_area import hold, made_area

Detector = TypeVar("Detector", bound=nn.Module)

_MARK = "routes_over_images"


def route_over_images(detector: Detector) -> Detector:
    """Let the routers of a detector of torchvision pool over each image, and return it: to be called once, before or
    after its conversion.

    An image's coefficients are then the same alone and in a batch with larger ones. Layers that see regions, in the
    heads of R-CNN, route by region, which is not padded.

    Raises:
        ArgumentError: the network has no `transform` that batches images, as torchvision's detectors have.
    """
    transform: Any = getattr(detector, "transform", None)
    if not isinstance(transform, nn.Module):
        rule, remedy = "has no transform that batches images", "hold condconv.valid_area(sizes, padded) around its call"
        raise argument_error("route_over_images", "detector", type(detector).__name__, rule, remedy)
    if not hasattr(detector, _MARK):
        object.__setattr__(detector, _MARK, True)
        transform.register_forward_hook(_begin)
        if hasattr(detector, "roi_heads"):
            detector.get_submodule("roi_heads").register_forward_pre_hook(_end)
        detector.register_forward_hook(_end, always_call=True)
    return detector


def _begin(transform: nn.Module, arguments: Any, output: Any) -> None:
    images = output[0]
    hold(made_area(images.image_sizes, images.tensors.shape[2:]))


def _end(module: nn.Module, *_: Any) -> None:
    hold(None)
