"""Top-down pose networks: a backbone and one of Dynamic Convolution's two heads, which brings its map to a quarter.

Bin Xiao, Haiping Wu, Yichen Wei: "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018,
https://arxiv.org/abs/1804.06208, has head A: three transposed convolutions. Yinpeng Chen et al.: "Dynamic Convolution",
CVPR 2020, https://arxiv.org/abs/1912.03458, section 5.3, puts it on MobileNets, whose last map it sees after the last
1x1 convolution, and has head B: upsampling and inverted bottlenecks. How many and how wide these are was not at hand;
of the layouts whose static multiply-adds and parameters are those that are recalled of it, one is taken.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.errors import ShapeError
from condconv.models.backbones import BACKBONES, build_backbone

COCO_JOINTS = 17
STRIDE = 4
"""Of the heatmaps."""

_OF_BACKBONE = {
    "mobilenetv2_050": "mobilenetv2_050", "mobilenetv2_100": "mobilenetv2_100",
    "mobilenetv3_small": "mobilenetv3_small", "resnet18": "resnet18",
}  # fmt: skip
POSES = {f"pose_{backbone}_{head}": (row, head) for backbone, row in _OF_BACKBONE.items() for head in "ab"}
"""Pose networks by name: backbone and head."""

_LEVELS = 3
_UPSAMPLED = 256
_REDUCED, _EXPANSION, _BLOCKS = 128, 6, 3
_BOTTLENECKS = (128, 80, 40)
"""Channels of head B's blocks behind each upsampling."""


class PoseNetwork(nn.Module):
    """Images (B, C, H, W) → heatmaps (B, joints, H/4, W/4).

    Args:
        backbone: name of a row of stride 32.
        head: "a" or "b".
        joints: number of heatmaps.
        in_chans: channels of the image.
        width_multiplier: factor on the channels of backbone and head.
    """

    def __init__(
        self, backbone: str, head: str, *, joints: int = COCO_JOINTS, in_chans: int = 3, width_multiplier: float = 1.0
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        trunk: Any = build_backbone(
            BACKBONES[backbone], num_classes=0, in_chans=in_chans, width_multiplier=width_multiplier
        )
        if backbone.startswith("mobilenetv3"):  # its last 1x1 comes after the pooling
            del trunk.conv_head, trunk.norm_head, trunk.act2
        self.backbone = trunk
        has_last = hasattr(trunk, "conv_head")
        channels: int = trunk.conv_head.out_channels if has_last else trunk.feature_info[-1]["num_chs"]
        kind = Deconvolutions if head == "a" else Bottlenecks
        self.head: Deconvolutions | Bottlenecks = kind(channels, joints, width_multiplier)

    def get_classifier(self) -> nn.Module:
        """The last layer, which stays static where layers are converted by kind or place."""
        return self.head.predict

    def forward(self, images: Tensor) -> Tensor:
        """See the class. Raises `ShapeError` for images whose sides are no multiples of 32."""
        if images.dim() != 4 or images.shape[1] != self.in_chans or any(side % 32 for side in images.shape[2:]):
            raise ShapeError(
                f"PoseNetwork: images of shape {tuple(images.shape)} must be (B, {self.in_chans}, H, W), H and W "
                "multiples of 32; the published size is 256x192"
            )
        backbone: Any = self.backbone
        heatmaps: Tensor = self.head(backbone.forward_features(images))
        return heatmaps


class Deconvolutions(nn.Module):
    """Head A: three transposed convolutions 4x4 of stride 2 with norm and ReLU, and a 1x1 with bias."""

    def __init__(self, channels: int, joints: int, width: float) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for _ in range(_LEVELS):
            made = max(1, round(_UPSAMPLED * width))
            steps += [nn.ConvTranspose2d(channels, made, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(made)]
            steps.append(nn.ReLU())
            channels = made
        self.levels = nn.Sequential(*steps)
        self.predict = nn.Conv2d(channels, joints, 1)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H/32, W/32) → (B, joints, H/4, W/4)."""
        heatmaps: Tensor = self.predict(self.levels(x))
        return heatmaps


class Bottlenecks(nn.Module):
    """Head B: a 1x1, then upsampling by 2 and inverted bottlenecks, three times, and a 1x1 with bias."""

    def __init__(self, channels: int, joints: int, width: float) -> None:
        super().__init__()
        made = max(1, round(_REDUCED * width))
        self.reduce = nn.Sequential(nn.Conv2d(channels, made, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU6())
        levels = []
        channels = made
        for out in _BOTTLENECKS:
            out = max(1, round(out * width))
            inputs = (channels, *[out] * (_BLOCKS - 1))
            levels.append(nn.Sequential(*(InvertedBottleneck(each, out) for each in inputs)))
            channels = out
        self.levels = nn.ModuleList(levels)
        self.predict = nn.Conv2d(channels, joints, 1)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H/32, W/32) → (B, joints, H/4, W/4)."""
        x = self.reduce(x)
        for level in self.levels:
            x = level(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        heatmaps: Tensor = self.predict(x)
        return heatmaps


class InvertedBottleneck(nn.Module):
    """1x1 to six times the channels, depthwise 3x3, 1x1 to the output's; with a shortcut where they are the same."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        expanded = _EXPANSION * in_channels
        self.expand = nn.Conv2d(in_channels, expanded, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(expanded)
        self.depthwise = nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded, bias=False)
        self.bn2 = nn.BatchNorm2d(expanded)
        self.project = nn.Conv2d(expanded, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        y = F.relu6(self.bn1(self.expand(x)))
        y = F.relu6(self.bn2(self.depthwise(y)))
        y = self.bn3(self.project(y))
        return x + y if self.shortcut else y


@torch.no_grad()
def _initialise(head: nn.Module) -> None:
    """As Simple Baselines do: normal with deviation 0.001, zero bias; head B's convolutions as MobileNets' are."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.001)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
