"""One example: one convolution with its kernel, in operators that every exporter has. Not for the planner to choose.

Mixtures become a kernel; factors go onto the map or onto the kernel, whichever are fewer multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from condconv.execution import scaled
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, Scaled, Static, kernels_of

Convolve = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x, kernel, bias (O,) or None) → y, as a static layer of that geometry does."""


def kernel_of_one(lowered: Any) -> Tensor:
    """The kernel, or matrix, of the only example; the kernel for all where nothing but one is there."""
    if isinstance(lowered, Static):
        return lowered.weight
    return kernels_of(lowered, torch.float32).reshape(lowered.kernel_shape)


def convolve_one(x: Tensor, lowered: Lowered, geometry: ConvGeometry, convolve: Convolve) -> Tensor:
    """Return y (1, O, *space) of x (1, I, *space), with the bias."""
    bias = None if lowered.bias is None else lowered.bias.reshape(-1)
    if not isinstance(lowered, Scaled):
        return convolve(x, kernel_of_one(lowered), bias)
    y = scaled.convolve(x, lowered, geometry, lambda x, core, _: convolve(x, kernel_of_one(core), None))
    return y if bias is None else y + bias.reshape(-1, *[1] * geometry.rank)


def multiply_one(x: Tensor, lowered: Lowered) -> Tensor:
    """Return y (1, *positions, O) of x (1, *positions, I), with the bias: that of a linear layer."""
    bias = None if lowered.bias is None else lowered.bias.reshape(-1)
    return F.linear(x, kernel_of_one(lowered), bias)
