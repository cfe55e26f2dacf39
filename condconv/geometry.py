"""The geometry of a convolution: everything about it but its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, zero padding, dilation and groups of a convolution of rank 1, 2 or 3.

    Padding is symmetric and made of zeros: the layer applies every other padding before a strategy sees the input.
    A kernel has PyTorch's layout, (O, I/g, *k), or (I, O/g, *k) where `transposed`.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    def in_channels(self, kernel_shape: Sequence[int]) -> int:
        """Return I of a kernel of this geometry."""
        return kernel_shape[0] if self.transposed else kernel_shape[1] * self.groups

    def out_channels(self, kernel_shape: Sequence[int]) -> int:
        """Return O of a kernel of this geometry."""
        return kernel_shape[1] * self.groups if self.transposed else kernel_shape[0]

    def output_size(self, input_size: Sequence[int], kernel_size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of the output for a spatial input size and a kernel size, both of length rank."""
        sizes = []
        for i, (size, k) in enumerate(zip(input_size, kernel_size, strict=True)):
            s, p, d = self.stride[i], self.padding[i], self.dilation[i]
            if self.transposed:
                sizes.append((size - 1) * s - 2 * p + d * (k - 1) + self.output_padding[i] + 1)
            else:
                sizes.append((size + 2 * p - d * (k - 1) - 1) // s + 1)
        return tuple(sizes)

    def smallest_input(self, dimension: int, kernel_size: int) -> int:
        """Return the smallest size, 0 or less included, of a spatial dimension of the input that has an output."""
        i = dimension
        reach = self.dilation[i] * (kernel_size - 1) + 1 - 2 * self.padding[i]
        if not self.transposed:
            return reach
        return 1 - (reach + self.output_padding[i] - 1) // self.stride[i]

    def is_pointwise(self, kernel_shape: Sequence[int]) -> bool:
        """Whether a kernel of this shape does nothing but multiply each position by a matrix."""
        ones = (1,) * self.rank
        plain = self.stride == ones and self.padding == (0,) * self.rank and not any(self.output_padding)
        return plain and tuple(kernel_shape[2:]) == ones and self.groups == 1

    def picks_positions(self, kernel_shape: Sequence[int]) -> bool:
        """Whether a kernel of this shape multiplies some positions by a matrix, those that the stride meets."""
        alone = not self.transposed and self.groups == 1 and not any(self.padding)
        return alone and all(size == 1 for size in kernel_shape[2:])

    def pick(self, x: Tensor) -> Tensor:
        """Return the positions of x (B, I, *space) that the stride meets, as a view."""
        return x[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]

    def macs(self, kernel_shape: Sequence[int], input_size: Sequence[int]) -> int:
        """Return the multiply-adds of one example (one multiply and one add = 1; padding counts as input, bias not)."""
        positions = input_size if self.transposed else self.output_size(input_size, kernel_shape[2:])
        return math.prod(kernel_shape) * math.prod(positions)

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int | None = None
    ) -> Tensor:
        """Convolve x (B, I, *space) with one static kernel for all examples, and add a bias (O,); → (B, O, *space).

        `groups` replaces the geometry's own count where a caller has folded the batch into the channels.
        """
        groups = self.groups if groups is None else groups
        if self.transposed:
            return _TRANSPOSED[self.rank](
                x, weight, bias, self.stride, self.padding, self.output_padding, groups, self.dilation
            )
        return _CONVOLUTIONS[self.rank](x, weight, bias, self.stride, self.padding, self.dilation, groups)
