"""What a strategy executes, in closed form: (mixing, convolution) multiply-adds of the whole batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, Mixture


def batch_of(lowered: Lowered) -> int:
    """Return B."""
    return (lowered.coefficients if isinstance(lowered, Mixture) else lowered.weight).shape[0]


def mixed_kernel_macs(lowered: Lowered, geometry: ConvGeometry, input_size: Sequence[int]) -> tuple[int, int]:
    """A strategy that mixes each example's kernel, n·|W|, and then convolves with it once."""
    kernel = math.prod(lowered.kernel_shape)
    mixing = batch_of(lowered) * lowered.experts.shape[0] * kernel if isinstance(lowered, Mixture) else 0
    return mixing, batch_of(lowered) * geometry.macs(lowered.kernel_shape, input_size)


def mixed_output_macs(lowered: Mixture, geometry: ConvGeometry, input_size: Sequence[int]) -> tuple[int, int]:
    """A strategy that convolves with every expert and then scales n outputs."""
    outputs = math.prod(geometry.output_size(input_size, lowered.kernel_shape[2:]))
    scaling = outputs * geometry.out_channels(lowered.kernel_shape)
    products = batch_of(lowered) * lowered.experts.shape[0]
    return products * scaling, products * geometry.macs(lowered.kernel_shape, input_size)
