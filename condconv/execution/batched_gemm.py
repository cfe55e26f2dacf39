"""Batched matrix products: a pointwise convolution is one, any other one after its windows are laid out as columns.

    pointwise, channels_last x:  y (B, HW, O)  = x (B, HW, I)      ·  Wᵀ (B, I, O)
    pointwise, contiguous x:     y (B, O, HW)  = W (B, O, I)       ·  x (B, I, HW)
    pointwise with a stride:     the same, of the positions that the stride meets
    otherwise:                   y (B·g, O/g, L) = W (B·g, O/g, I/g·K) · columns (B·g, I/g·K, L)
    transposed:                  columns (B·g, O/g·K, L) = Wᵀ · x, then added up where windows overlap

K = number of kernel taps, L = number of output positions. Every shape may be dynamic in B, so this is the form that is
exported.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from condconv.execution.closed_forms import mixed_kernel_macs
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, kernels_of


class BatchedGemm:
    """Convolution with per-example kernels as `torch.bmm`."""

    name = "batched_gemm"
    macs = staticmethod(mixed_kernel_macs)
    adds_bias = False

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None: it always can."""
        return None

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, *space) of x (B, I, *space), bias left out."""
        kernels = kernels_of(lowered, x.dtype)
        if geometry.is_pointwise(lowered.kernel_shape):
            matrix = kernels.flatten(2)  # B O I, or B I O transposed
            return _pointwise(x, matrix.transpose(1, 2) if geometry.transposed else matrix)
        if geometry.picks_positions(lowered.kernel_shape):
            return _pointwise(geometry.pick(x), kernels.flatten(2))
        return _transposed(x, kernels, geometry) if geometry.transposed else _windows(x, kernels, geometry)


def _pointwise(x: Tensor, matrix: Tensor) -> Tensor:
    """X (B, I, *space), matrix (B, O, I) → (B, O, *space), in the memory layout of x."""
    if x.dim() > 2 and x.stride(1) == 1:
        y = torch.bmm(x.flatten(2).transpose(1, 2), matrix.transpose(1, 2)).transpose(1, 2)  # B O L
    else:
        y = torch.bmm(matrix, x.flatten(2))
    return y.unflatten(2, x.shape[2:])


def _windows(x: Tensor, kernels: Tensor, geometry: ConvGeometry) -> Tensor:
    """A convolution: one shifted slice of x for each kernel tap, stacked to columns, times the kernels."""
    batch, groups, kernel_size = x.shape[0], geometry.groups, kernels.shape[3:]
    out_size = geometry.output_size(x.shape[2:], kernel_size)
    x = F.pad(x, [p for p in reversed(geometry.padding) for _ in range(2)])
    slices = [x[slot].flatten(2) for slot in _tap_slots(kernel_size, out_size, geometry)]
    columns = torch.stack(slices, dim=2)  # B I K L
    columns = columns.reshape(batch * groups, -1, columns.shape[3])  # B·g I/g·K L
    matrix = kernels.reshape(batch * groups, kernels.shape[1] // groups, -1)  # B·g O/g I/g·K
    return torch.bmm(matrix, columns).reshape(batch, kernels.shape[1], *out_size)


def _transposed(x: Tensor, kernels: Tensor, geometry: ConvGeometry) -> Tensor:
    """A transposed convolution: the kernels times x give one column for each tap, added up where they overlap."""
    batch, groups, kernel_size, size = x.shape[0], geometry.groups, kernels.shape[3:], x.shape[2:]
    taps, out_channels = math.prod(kernel_size), kernels.shape[2] * groups
    matrix = kernels.reshape(batch * groups, x.shape[1] // groups, -1).transpose(1, 2)  # B·g O/g·K I/g
    columns = torch.bmm(matrix, x.reshape(batch * groups, x.shape[1] // groups, -1))  # B·g O/g·K L
    columns = columns.reshape(batch, out_channels, taps, *size)
    full = geometry.output_size(size, kernel_size)
    full = tuple(f + 2 * p - o for f, p, o in zip(full, geometry.padding, geometry.output_padding, strict=True))
    y = columns.new_zeros((batch, out_channels, *full))
    for tap, slot in enumerate(_tap_slots(kernel_size, size, geometry)):
        y[slot] += columns[:, :, tap]
    pairs = zip(reversed(geometry.padding), reversed(geometry.output_padding), strict=True)
    return F.pad(y, [amount for p, o in pairs for amount in (-p, o - p)])


def _tap_slots(
    kernel_size: Sequence[int], positions: Sequence[int], geometry: ConvGeometry
) -> Iterator[tuple[slice, ...]]:
    """For each kernel tap, the index of the padded input elements that it meets, one for each position."""
    everything = slice(None)
    for tap in itertools.product(*(range(k) for k in kernel_size)):
        starts = [t * d for t, d in zip(tap, geometry.dilation, strict=True)]
        steps = zip(starts, positions, geometry.stride, strict=True)
        yield (everything, everything, *(slice(a, a + (size - 1) * s + 1, s) for a, size, s in steps))
