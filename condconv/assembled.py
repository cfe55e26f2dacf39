"""Kernels that are put together from weighted parts; forms that a bank lowers to, as those of `condconv.lowered`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


class Spectrum(NamedTuple):
    """Kernels from the parts of one spectrum, each with a weight (FDConv).

    A kernel is the matrix (kh·O, kw·I) whose half-plane transform, orthonormal, is the weighted spectrum.
    """

    coefficients: Tensor
    """(B, n)."""
    spectrum: Tensor
    """(kh·O, kw·I // 2 + 1, 2), in real and imaginary parts."""
    parts: Tensor
    """(kh·O, kw·I // 2 + 1): the part of the n that a number belongs to."""
    bias: Tensor | None
    """(1, O) or None."""
    kernel_shape: tuple[int, ...]
    """(O, I, kh, kw)."""

    @property
    def form(self) -> tuple[object, ...]:
        """What a strategy may be chosen by, beside the image and the geometry: shapes and types, no values."""
        return "spectrum", self.coefficients.shape[1], self.spectrum.dtype, self.kernel_shape

    @property
    def mixing_macs(self) -> int:
        """Multiply-adds of one example's kernel."""
        return self.macs_of(self.kernel_shape, self.spectrum.numel())

    @staticmethod
    def macs_of(kernel_shape: Sequence[int], numbers: int) -> int:
        """Multiply-adds of weighting so many numbers of a spectrum, and of its transform."""
        return numbers + transform_macs(math.prod(kernel_shape))

    def without_bias(self) -> Spectrum:
        """The same with no bias."""
        return self._replace(bias=None)

    def keeping(self, keep: Callable[[Any], Any]) -> Any:
        """What `keep` makes of it: the kernels of an earlier call, where they still serve."""
        return keep(self)

    def mix(self) -> Tensor:
        """Return each example's kernel, (B, *kernel_shape), transformed in f32 at least."""
        outputs, inputs, height, width = self.kernel_shape
        dtype = torch.promote_types(self.spectrum.dtype, torch.float32)
        if self.coefficients.shape[0] == 0:  # Not every library transforms nothing.
            return self.spectrum.new_zeros((0, *self.kernel_shape))
        weights = self.coefficients.to(dtype)[:, self.parts.flatten()]  # B F
        weighted = weights.unsqueeze(2) * self.spectrum.to(dtype).flatten(0, 1)  # B F 2
        spectra = torch.view_as_complex(weighted).unflatten(1, self.parts.shape)
        matrices = torch.fft.irfft2(spectra, s=(height * outputs, width * inputs), norm="ortho")
        kernels = matrices.unflatten(2, (width, inputs)).unflatten(1, (height, outputs))  # B kh O kw I
        return kernels.permute(0, 2, 4, 1, 3).to(self.spectrum.dtype)


Assembled = Cells | Blocks | Spectrum


def transform_macs(size: int) -> int:
    """Multiply-adds of a fast Fourier transform of real numbers: 2.5·N·log₂N operations are half as many of them."""
    return round(1.25 * size * math.log2(size))
