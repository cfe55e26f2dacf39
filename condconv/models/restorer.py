"""A small network at full resolution that restores pictures: five 3x3 convolutions whose sum is added to the picture.

    y = x + s W₅ * relu(W₄ * … relu(W₁ * x)),        channels 3 → 16 → 16 → 16 → 16 → 3,        s = 0.1

The picture is learned as a residual, as in Kai Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN
for Image Denoising", IEEE Transactions on Image Processing 2017, https://arxiv.org/abs/1608.03981; there is no batch
normalisation, so that the noise level reaches every layer. The factor s lets the network begin close to the identity,
however its kernels are drawn.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

from timm.layers import SqueezeExcite
from torch import Tensor, nn

from condconv.errors import ShapeError

CHANNELS = 16
HIDDEN_LAYERS = 4
RESIDUAL_SCALE = 0.1

RESTORERS = {"restorer": False, "restorer_se": True}
"""Networks by name, and whether they have squeeze-and-excitation after each hidden layer."""


class Restorer(nn.Module):
    """See the module's docstring.

    Args:
        in_chans: channels of the picture.
        width: factor on the hidden channels; layer by layer they take their next channel, so that multiply-adds grow
            by 2 to 4 % at a time.
        squeeze_excite: whether each hidden map is scaled channel by channel.
    """

    def __init__(self, in_chans: int = 3, width: float = 1.0, squeeze_excite: bool = False) -> None:
        super().__init__()
        self.in_chans = in_chans
        channels = [in_chans, *hidden_channels(width), in_chans]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.normal_(convolution.weight, 0.0, math.sqrt(2.0 / (9 * outputs)))
            nn.init.zeros_(cast(Tensor, convolution.bias))
            layers += [convolution, nn.ReLU()]
            if squeeze_excite:
                layers.append(SqueezeExcite(outputs))
        depth = 3 if squeeze_excite else 2
        self.body = nn.Sequential(*layers[: HIDDEN_LAYERS * depth + 1])

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) → restored pictures of the same shape."""
        if images.dim() != 4 or images.shape[1] != self.in_chans:
            raise ShapeError(
                f"Restorer: images of shape {tuple(images.shape)} must be (B, {self.in_chans}, H, W); "
                "pass a batch of images, or build the network with in_chans="
            )
        restored: Tensor = images + RESIDUAL_SCALE * self.body(images)
        return restored


def hidden_channels(width: float) -> list[int]:
    """⌊16 · width + u⌋ of each hidden layer, with its own u, evenly spread in (0, 1): the first layer is the last."""
    return [
        max(1, math.floor(CHANNELS * width + (place + 0.5) / HIDDEN_LAYERS)) for place in reversed(range(HIDDEN_LAYERS))
    ]
