"""The residual networks for 32x32 images of He et al.: a 3x3 convolution, three stages of basic blocks, a classifier.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385, section 4.2: 6m + 2 layers of 16, 32 and 64 channels on maps of 32, 16 and 8 pixels,
and shortcuts without parameters ("option A"): every second pixel, and zeros for the channels that are missing. With
squeeze-excitation (Jie Hu, Li Shen, Gang Sun, CVPR 2018, section 6.2: "SE-ResNet" on CIFAR) where that is asked for.

The blocks are timm's; only stem, shortcut and widths are written here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from timm.layers import DropPath, create_classifier
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 16
"""Of the first stage; twice as many after each stride, so that a layer costs the same ("if the feature map size is
halved, the number of filters is doubled")."""
STRIDES = (1, 1, 2, 2)
"""Of the stem and the three stages, as published."""


def strides_for(output_stride: int | None) -> tuple[int, ...]:
    """Of stem and stages: as published (4 in total); a total of 2 is the stem's, and all stages see as many."""
    strides = {1: (1, 1, 1, 1), 2: (2, 1, 1, 1), 8: (2, 1, 2, 2), 16: (2, 2, 2, 2)}
    return STRIDES if output_stride is None else strides.get(output_stride, STRIDES)


class PaddedShortcut(nn.Module):
    """Option A: every `stride`-th pixel, channels padded with zeros on both sides, or cut off where there are too many.

    x (B, C, H, W) → (B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        missing = out_channels - in_channels
        self.padding = (missing // 2, missing - missing // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class CifarResNet(nn.Module):
    """See the module's docstring.

    Args:
        blocks: residual blocks of each stage, m.
        num_classes: width of the classifier; 0 for none.
        in_chans: channels of the image.
        strides: of the stem and of the three stages; a stage of stride 1 keeps the channels of the one before it.
        width: factor on all channels, the channels inside of a block included. Where a number of channels is not whole,
            some layers round it up and others down, so that multiply-adds grow in small steps with the width.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, of the last block; linear over depth.
        global_pool: timm's name of the pooling before the classifier.
        attn_layer: timm's name of what follows the last convolution of a block, such as "se"; None for nothing.
    """

    def __init__(
        self,
        blocks: int = 1,
        num_classes: int = 10,
        in_chans: int = 3,
        strides: tuple[int, ...] = STRIDES,
        width: float = 1.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        attn_layer: Any = None,
    ) -> None:
        super().__init__()
        outer, inner = spread_channels(blocks, width, strides)
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.conv1 = nn.Conv2d(in_chans, outer[0], 3, strides[0], 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer[0])
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info: Any = [{"num_chs": outer[0], "reduction": strides[0], "module": "act1"}]
        depth, channels, reduction = 0, outer[0], strides[0]
        for stage, (out, stride) in enumerate(zip(outer, strides[1:], strict=True)):
            made = []
            for number in range(blocks):
                drop = drop_path_rate * depth / max(1, 3 * blocks - 1)
                made.append(_block(channels, inner[depth], out, stride if number == 0 else 1, drop, attn_layer))
                depth, channels = depth + 1, out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
            reduction *= stride
            self.feature_info.append({"num_chs": out, "reduction": reduction, "module": f"layer{stage + 1}"})
        self.num_features = self.head_hidden_size = channels
        self.global_pool, self.fc = create_classifier(channels, num_classes, pool_type=global_pool)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map: (B, C, H, W)."""
        x = self.act1(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = cast(nn.Module, stage)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The logits (B, num_classes) of the last map; the pooled features with `pre_logits`."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (B, num_classes) of x (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def spread_channels(blocks: int, width: float, strides: Sequence[int] = STRIDES) -> tuple[list[int], list[int]]:
    """The channels of the three stages, and those inside of each block.

    Each of them is ⌊c · width + u⌋ with its own u in (0, 1), evenly spread, so that as the width grows they take their
    next channel one after another: 12 layers of 16 channels then have 11 widths between those of 16 and of 17 channels.
    """
    plain = [CHANNELS * math.prod(strides[2 : stage + 2]) for stage in range(3)]
    places = 3 + 3 * blocks
    thresholds = [(place * _stride_through(places) % places + 0.5) / places for place in range(places)]
    of_stage = [max(1, math.floor(c * width + u)) for c, u in zip(plain, thresholds, strict=False)]
    of_block = [max(1, math.floor(plain[block // blocks] * width + u)) for block, u in enumerate(thresholds[3:])]
    return of_stage, of_block


def _stride_through(places: int) -> int:
    """A step that visits all places, about 0.62 of them long, so that neighbours in depth are far apart."""
    return next(step for step in range(max(1, round(0.618 * places)), places + 1) if math.gcd(step, places) == 1)


def _block(
    in_channels: int, inner: int, out: int, stride: int, drop_path: float, attn_layer: Any
) -> nn.Module:
    """A basic block of timm's, with `inner` channels between its two convolutions."""
    same = in_channels == out and stride == 1
    block: Any = BasicBlock(
        in_channels,
        out,
        stride,
        None if same else PaddedShortcut(in_channels, out, stride),
        attn_layer=attn_layer,
        drop_path=DropPath(drop_path) if drop_path else None,
    )
    if inner != out:
        block.conv1 = nn.Conv2d(in_channels, inner, 3, stride, 1, bias=False)
        block.bn1 = nn.BatchNorm2d(inner)
        block.conv2 = nn.Conv2d(inner, out, 3, 1, 1, bias=False)
    return block
