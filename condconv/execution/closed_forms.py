"""What a strategy executes, in closed form: (mixing, convolution) multiply-adds of the whole batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from condconv.assembled import Assembled
from condconv.geometry import ConvGeometry
from condconv.lowered import Kernels, Lowered, Mixture, Packed, Scaled, Static


def batch_of(lowered: Lowered) -> int:
    """Return B."""
    if isinstance(lowered, Static):
        return lowered.batch
    if isinstance(lowered, Scaled):
        return batch_of(lowered.inner)
    return (lowered.weight if isinstance(lowered, Kernels) else lowered.coefficients).shape[0]


def mixed_kernel_macs(lowered: Lowered, geometry: ConvGeometry, input_size: Sequence[int]) -> tuple[int, int]:
    """A strategy that mixes each example's kernel, n·|W|, and then convolves with it once.

    Scaling int8 experts is one more multiplication for each of their weights, whatever the batch.
    """
    mixing = 0
    if isinstance(lowered, Mixture | Packed):
        scaled = isinstance(lowered, Packed) and lowered.scale is not None
        mixing = (batch_of(lowered) + scaled) * lowered.num_experts * math.prod(lowered.kernel_shape)
    elif isinstance(lowered, Assembled):
        mixing = batch_of(lowered) * lowered.mixing_macs
    return mixing, batch_of(lowered) * geometry.macs(lowered.kernel_shape, input_size)


def mixed_output_macs(lowered: Mixture, geometry: ConvGeometry, input_size: Sequence[int]) -> tuple[int, int]:
    """A strategy that convolves with every expert and then scales n outputs."""
    outputs = math.prod(geometry.output_size(input_size, lowered.kernel_shape[2:]))
    scaling = outputs * geometry.out_channels(lowered.kernel_shape)
    products = batch_of(lowered) * lowered.num_experts
    return products * scaling, products * geometry.macs(lowered.kernel_shape, input_size)
