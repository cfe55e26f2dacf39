"""Problems for the native operators, and what they must compute: convolutions with kernels mixed in f64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from condconv.execution import native
from condconv.packing import pack, unpack

NEEDS_NATIVE = pytest.mark.skipif(not native.available(), reason=f"no native operator: {native.load_error()}")

Pair = int | tuple[int, int]
Geometry = tuple[list[int], list[int], list[int], int]


class Case(NamedTuple):
    """B, n and the convolution."""

    batch: int
    experts: int
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    kernel: Pair = 1
    stride: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1
    groups: int = 1

    def geometry(self) -> Geometry:
        return _two(self.stride), _two(self.padding), _two(self.dilation), self.groups

    def kernel_shape(self) -> list[int]:
        return [self.out_channels, self.in_channels // self.groups, *_two(self.kernel)]


def _two(pair: Pair) -> list[int]:
    return [pair, pair] if isinstance(pair, int) else list(pair)


class Problem:
    """The tensors of a case, with packed experts and their bias."""

    def __init__(self, case: Case, storage: str, dtype: torch.dtype = torch.bfloat16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.case = case
        self.x = torch.randn(case.batch, case.in_channels, *case.size, generator=generator).to(dtype)
        self.coefficients = torch.rand(case.batch, case.experts, generator=generator)
        experts = torch.randn(case.experts, *case.kernel_shape(), generator=generator)
        self.bias = torch.randn(case.experts, case.out_channels, generator=generator)
        self.packed, self.scale = pack(experts, case.groups, storage)
        self.experts = unpack(self.packed, self.scale, case.kernel_shape(), case.groups)

    def run(self, threshold: float = 0.0) -> Tensor:
        weights = (self.packed, self.scale, self.bias, None, self.case.kernel_shape())
        return torch.ops.condconv.conv2d_packed(self.x, self.coefficients, *weights, *self.case.geometry(), threshold)

    def expected(self) -> Tensor:
        return definition(self.x, self.coefficients, self.experts, self.case.geometry(), self.bias)


def definition(
    x: Tensor, coefficients: Tensor, experts: Tensor, geometry: Geometry, bias: Tensor | None = None
) -> Tensor:
    """Mix a kernel and a bias for each example, and convolve them one by one; f64, differentiable."""
    x, coefficients, experts = x.double(), coefficients.double(), experts.double()
    kernels = torch.einsum("bn,noikl->boikl", coefficients, experts)
    biases = kernels.new_zeros(kernels.shape[:2]) if bias is None else coefficients @ bias.double()
    if not len(x):
        return F.conv2d(x, experts[0], None, *geometry)
    return torch.cat([F.conv2d(x[b : b + 1], kernels[b], biases[b], *geometry) for b in range(len(x))])


def direction_of(problem: Problem) -> Tensor:
    """A gradient of the problem's output."""
    return torch.randn_like(problem.expected()).to(problem.x.dtype)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value of b, for single values may cancel."""
    assert a.shape == b.shape
    if b.numel() == 0:
        return 0.0
    return float((a.detach().double() - b.detach().double()).abs().max() / b.detach().abs().max().clamp(min=1e-6))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Channels that are multiples of nothing, batches of none to nine, and every geometry that fits."""
    kind = draw(st.sampled_from(["dense", "dense", "grouped", "depthwise", "sliding"]))
    groups = {"dense": 1, "grouped": draw(st.integers(2, 4))}.get(kind, draw(st.integers(2, 40)))
    depth, columns = (draw(st.integers(1, 40)), draw(st.integers(1, 40))) if kind in ("dense", "grouped") else (1, 1)

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 2)
    if kind == "sliding":  # depthwise, with the channels and the rows for which there are kernels of their own
        groups, dilation = draw(st.integers(32, 100)), (dilation[0], 1)
        kernel = kernel[0], draw(st.sampled_from([3, 5]))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = (least[0] + draw(st.integers(0, 7)), least[1] + draw(st.integers(0, 7)))
    batch, experts = draw(st.integers(0, 9)), draw(st.integers(1, 12))
    return Case(batch, experts, groups * depth, groups * columns, size, kernel, stride, padding, dilation, groups)


def _with_gaps(x: Tensor) -> Tensor:
    return F.pad(x, (1, 2, 3, 1))[:, :, 3 : 3 + x.shape[2], 1 : 1 + x.shape[3]]


def _turned(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "with gaps": _with_gaps,
    "turned": _turned,
    "expanded": lambda x: x[:1].expand(x.shape),
}
"""The same values in another layout, but for "expanded": the first example in the place of all."""
