"""Kernels that are put together from weighted parts; forms that a bank lowers to, as those of `condconv.lowered`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """Kernels of m cells, each mixed from the same n: cell c of example b is Σⱼ coefficients[b, c·n + j] · cells[j].

    The cells of a kernel come tap by tap, then by output channels, then by input channels.
    """

    coefficients: Tensor
    """(B, m·n)."""
    cells: Tensor
    """(n, o, i): o divides O, and i divides I/g; a cell has one tap."""
    bias: Tensor | None
    """(1, O) or None."""
    kernel_shape: tuple[int, ...]
    """(O, I/g, *k)."""

    @property
    def form(self) -> tuple[object, ...]:
        """What a strategy may be chosen by, beside the image and the geometry: shapes and types, no values."""
        return "cells", self.cells.shape, self.cells.dtype, self.kernel_shape

    @property
    def mixing_macs(self) -> int:
        """Multiply-adds of one example's kernel, n·|W|."""
        return self.cells.shape[0] * math.prod(self.kernel_shape)

    def without_bias(self) -> Cells:
        """The same with no bias."""
        return self._replace(bias=None)

    def keeping(self, keep: Callable[[Any], Any]) -> Any:
        """What `keep` makes of it: the kernels of an earlier call, where they still serve."""
        return keep(self)

    def mix(self) -> Tensor:
        """Return each example's kernel, (B, *kernel_shape): one product of matrices (B·m, n) and (n, o·i)."""
        (n, o, i), batch = self.cells.shape, self.coefficients.shape[0]
        outputs, inputs, *space = self.kernel_shape
        m = self.coefficients.shape[1] // n
        rows = self.coefficients.to(self.cells.dtype).reshape(batch * m, n)
        mixed = torch.mm(rows, self.cells.flatten(1))  # B·m o·i
        parts = mixed.reshape(batch, math.prod(space), outputs // o, inputs // i, o, i)  # B K O/o I/i o i
        return parts.permute(0, 2, 4, 3, 5, 1).reshape(batch, *self.kernel_shape)


class Blocks(NamedTuple):
    """n kernels with a weight for each output channel and block of input channels (WeightNet)."""

    coefficients: Tensor
    """(B, n·O·G): kernel by kernel, output channel by output channel."""
    experts: Tensor
    """(n, O, I/g, *k)."""
    bias: Tensor | None
    """(1, O) or None."""
    blocks: int
    """G, which divides I/g."""

    @property
    def form(self) -> tuple[object, ...]:
        """What a strategy may be chosen by, beside the image and the geometry: shapes and types, no values."""
        return "blocks", self.experts.shape, self.experts.dtype, self.blocks

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one kernel."""
        return tuple(self.experts.shape[1:])

    @property
    def mixing_macs(self) -> int:
        """Multiply-adds of one example's kernel, n·|W|."""
        return self.experts.numel()

    def without_bias(self) -> Blocks:
        """The same with no bias."""
        return self._replace(bias=None)

    def keeping(self, keep: Callable[[Any], Any]) -> Any:
        """What `keep` makes of it: the kernels of an earlier call, where they still serve."""
        return keep(self)

    def mix(self) -> Tensor:
        """Return each example's kernel, (B, *kernel_shape)."""
        n, outputs = self.experts.shape[:2]
        batch = self.coefficients.shape[0]
        rows = self.coefficients.to(self.experts.dtype).reshape(batch, n, outputs, self.blocks, 1)
        parts = rows * self.experts.flatten(2).reshape(n, outputs, self.blocks, -1)  # B n O G I/G·K
        return parts.sum(dim=1).reshape(batch, *self.kernel_shape)
