"""The place that a conditional layer goes to: all that a variant may know about it when it makes bank and router."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from condconv.geometry import ConvGeometry


@dataclass(frozen=True)
class ConvSite:
    """A convolution, or a linear layer, without its weights.

    Args:
        in_channels: I. Of a router that several layers share: the channels of what it sees.
        out_channels: O.
        kernel_size: one number for each spatial dimension; () for a linear layer.
        geometry: stride, padding, dilation, groups.
        bias: whether a bias is added.
        name: of the layer in its network; "" where it stands alone.
        block: name of the block around it; None outside of all blocks.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    geometry: ConvGeometry
    bias: bool
    name: str = ""
    block: str | None = None

    @property
    def groups(self) -> int:
        """How many groups the channels are divided into."""
        return self.geometry.groups

    @property
    def taps(self) -> int:
        """Positions of the kernel; 1 for a linear layer."""
        return math.prod(self.kernel_size)

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved by itself."""
        return self.groups > 1 and self.in_channels == self.groups == self.out_channels

    def with_bias(self) -> ConvSite:
        """The same place with a bias."""
        return replace(self, bias=True)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the static kernel: (O, I/g, *k), or (I, O/g, *k) transposed."""
        if self.geometry.transposed:
            return self.in_channels, self.out_channels // self.groups, *self.kernel_size
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size
