"""SSD over MobileNetV1 at 300x300 in the TensorFlow Object Detection API's layout, the CondConv paper's detector.

Wei Liu, Dragomir Anguelov, Dumitru Erhan, Christian Szegedy, Scott Reed, Cheng-Yang Fu, Alexander C. Berg: "SSD: Single
Shot MultiBox Detector", ECCV 2016, https://arxiv.org/abs/1512.02325. The layout was settled by arithmetic: with six
feature maps of 19, 10, 5, 3, 2 and 1 pixels, extra layers that scale with the width (at least 16 channels) and 1x1
predictors, the multiply-adds of all three published widths come out within 0.6 %.

The network is here, its loss and the way from outputs to boxes are in `condconv.detection`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from condconv.errors import ShapeError
from condconv.models.backbones import BACKBONES, build_backbone

_EXTRA_CHANNELS = ((256, 512), (128, 256), (128, 256), (64, 128))
_MIN_CHANNELS = 16
_ASPECT_RATIOS = (1.0, 2.0, 0.5, 3.0, 1.0 / 3.0)
_MIN_SCALE, _MAX_SCALE = 0.2, 0.95
COCO_CLASSES = 90
"""Object classes of COCO's label numbering, background not counted."""

DETECTORS = {f"ssd_mobilenetv1_{width}": f"mobilenetv1_{width}" for width in ("050", "075", "100")}
"""Detectors by name, and their backbones."""


class SSDOutput(NamedTuple):
    """What `SSD` returns: for B images and A anchors, scores before the softmax and box offsets.

    ``class_logits`` is (B, A, num_classes + 1), class 0 being the background; ``box_offsets`` is (B, A, 4).
    """

    class_logits: Tensor
    box_offsets: Tensor


class ExtraLayer(nn.Module):
    """One step down in resolution: a 1x1 convolution and a 3x3 convolution of stride 2, each with norm and ReLU6."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, hidden_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden_channels)
        self.expand = nn.Conv2d(hidden_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, ⌈H/2⌉, ⌈W/2⌉)."""
        x = self.act(self.bn1(self.reduce(x)))
        return self.act(self.bn2(self.expand(x)))


class SSD(nn.Module):
    """A MobileNetV1 trunk, four extra layers, and 1x1 predictors on six feature maps.

    Args:
        backbone: name of a MobileNetV1 row (``mobilenetv1_050``).
        num_classes: object classes; the background is added as class 0.
        in_chans: channels of the image.
        width_multiplier: factor on the channels of the trunk and of the extra layers.
        class_prior: probability of each class at the start, by the predictors' biases, as a sigmoid loss wants it; None
            for biases of zero.

    Batch-normalised layers follow the trunk's initialiser; predictors start at normal(0, 0.01) with zero bias.
    """

    def __init__(
        self, backbone: str, *, num_classes: int = COCO_CLASSES, in_chans: int = 3, width_multiplier: float = 1.0,
        class_prior: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        row = BACKBONES[backbone]
        self.num_classes = num_classes
        self.in_chans = in_chans
        # Levels 3 and 4 are the last 512- and the last 1024-channel map: strides 16 and 32.
        backbone_maps: Any = build_backbone(
            row, in_chans=in_chans, width_multiplier=width_multiplier, features_only=True, out_indices=(3, 4)
        )
        self.backbone = backbone_maps
        channels: list[int] = list(backbone_maps.feature_info.channels())
        extras = []
        for hidden, out in _EXTRA_CHANNELS:
            hidden, out = (max(_MIN_CHANNELS, int(c * row.width * width_multiplier)) for c in (hidden, out))
            extras.append(ExtraLayer(channels[-1], hidden, out))
            channels.append(out)
        self.extras = nn.ModuleList(extras)
        anchors = anchors_per_location(len(channels))
        self.class_predictors = nn.ModuleList(
            nn.Conv2d(c, a * (num_classes + 1), 1) for c, a in zip(channels, anchors, strict=True)
        )
        self.box_predictors = nn.ModuleList(nn.Conv2d(c, a * 4, 1) for c, a in zip(channels, anchors, strict=True))
        self._initialise(0.0 if class_prior is None else math.log(class_prior / (1 - class_prior)))

    def _initialise(self, class_bias: float) -> None:
        for module in self.extras.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        for predictor in (*self.class_predictors, *self.box_predictors):
            nn.init.normal_(predictor.weight, 0.0, 0.01)
            nn.init.zeros_(predictor.bias)
        for predictor in self.class_predictors:
            nn.init.constant_(cast(Tensor, predictor.bias), class_bias)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) → the six maps that are predicted from, finest first."""
        if images.dim() != 4 or images.shape[1] != self.in_chans:
            raise ShapeError(
                f"SSD: images of shape {tuple(images.shape)} must be (B, {self.in_chans}, H, W); "
                "pass a batch of images, or build the network with in_chans="
            )
        maps = list(self.backbone(images))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps

    def forward(self, images: Tensor) -> SSDOutput:
        """(B, C, H, W) → logits (B, A, num_classes + 1) and offsets (B, A, 4); A = 1917 at 300x300."""
        maps = self.feature_maps(images)
        logits = [_by_anchor(p(m), self.num_classes + 1) for p, m in zip(self.class_predictors, maps, strict=True)]
        offsets = [_by_anchor(p(m), 4) for p, m in zip(self.box_predictors, maps, strict=True)]
        return SSDOutput(torch.cat(logits, 1), torch.cat(offsets, 1))

    def map_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """The heights and widths of the six maps for images of ``image_size`` (H, W)."""
        return ssd_map_sizes(image_size)

    def anchors(self, image_size: tuple[int, int]) -> Tensor:
        """The default boxes (A, 4) for images of ``image_size`` (H, W), in the outputs' order (`make_anchors`)."""
        return ssd_anchors(image_size).to(next(self.parameters()).device)


def ssd_map_sizes(image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """The heights and widths of the six maps of `SSD` for images of ``image_size`` (H, W)."""
    sizes, (height, width) = [], image_size
    for level in range(5 + len(_EXTRA_CHANNELS)):
        height, width = (height + 1) // 2, (width + 1) // 2  # every step down is a 3x3 of stride 2 with padding 1
        if level >= 3:
            sizes.append((height, width))
    return sizes


@cache
def ssd_anchors(image_size: tuple[int, int]) -> Tensor:
    """The default boxes (A, 4) of `SSD` for images of ``image_size`` (H, W), on the CPU; see `make_anchors`."""
    return make_anchors(ssd_map_sizes(image_size))


def anchors_per_location(levels: int) -> list[int]:
    """How many default boxes each location of each level has: 3 on the finest, 6 on the others."""
    return [3] + [6] * (levels - 1)


def make_anchors(map_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Default boxes (A, 4) as centre x, centre y, width, height in fractions of the image.

    Scales run linearly from 0.2 to 0.95 over the levels; aspect ratios are 1, 2, 1/2, 3, 1/3, and 1 once more at the
    geometric mean of this level's scale and the next. The finest level has three boxes only: a small square of scale
    0.1, and ratios 2 and 1/2.
    """
    levels = len(map_sizes)
    scales = [_MIN_SCALE + (_MAX_SCALE - _MIN_SCALE) * i / max(1, levels - 1) for i in range(levels)] + [1.0]
    boxes = []
    for level, (height, width) in enumerate(map_sizes):
        if level == 0:
            shapes = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        else:
            shapes = [(scales[level], ratio) for ratio in _ASPECT_RATIOS]
            shapes.append((math.sqrt(scales[level] * scales[level + 1]), 1.0))
        size = torch.tensor([(s * math.sqrt(r), s / math.sqrt(r)) for s, r in shapes])
        y = (torch.arange(height) + 0.5) / height
        x = (torch.arange(width) + 0.5) / width
        centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)  # (height, width, 2) as x, y
        grid = (height, width, len(shapes), 2)
        boxes.append(torch.cat([centre[:, :, None].expand(grid), size.expand(grid)], -1).reshape(-1, 4))
    return torch.cat(boxes)


def _by_anchor(prediction: Tensor, values: int) -> Tensor:
    """(B, anchors * values, H, W) → (B, H * W * anchors, values)."""
    return prediction.permute(0, 2, 3, 1).reshape(prediction.shape[0], -1, values)
