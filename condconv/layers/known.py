"""What a layer remembers of a plain forward pass, so that the next one with such an input asks less."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condconv.banks import Bank
from condconv.execution import Road, road
from condconv.geometry import ConvGeometry
from condconv.lowered import tensors


class Known(NamedTuple):
    """Found out by a forward pass in which nothing else happened (`condconv.context.only_runs`)."""

    shape: torch.Size
    stride: int
    """From channel to channel."""
    dtype: torch.dtype
    device: torch.device
    geometry: ConvGeometry
    form: tuple[object, ...]
    """Of what the bank made of the coefficients."""
    asked: str
    """The layer's strategy."""
    strategy: str
    """The one that ran."""
    held: tuple[Tensor | None, ...]
    """The bank's tensors, of which `road` is made."""
    types: tuple[torch.dtype | None, ...]
    """Theirs: `tensor.data = …` changes them in place."""
    road: Road | None
    """The whole way from x and coefficients to the output, where it is made of nothing else."""

    def fits(self, x: Tensor, geometry: ConvGeometry, asked: str) -> bool:
        """Whether an input x is of the same kind, and asked for in the same way."""
        if type(x) is not Tensor or x.shape != self.shape or x.dtype is not self.dtype or x.device != self.device:
            return False
        strided = x.layout is torch.strided and x.stride(1) == self.stride
        return strided and geometry is self.geometry and asked is self.asked

    def still(self, bank: Bank) -> bool:
        """Whether the bank holds the tensors that `road` was made of."""
        held = bank.held()
        return len(held) == len(self.held) and all(map(operator.is_, held, self.held)) and _types(held) == self.types


def _types(held: tuple[Tensor | None, ...]) -> tuple[torch.dtype | None, ...]:
    return tuple([None if tensor is None else tensor.dtype for tensor in held])


def known(
    x: Tensor, coefficients: Tensor, lowered: Any, bank: Bank, geometry: ConvGeometry, asked: str, strategy: str
) -> Known:
    """What there is to know of a forward pass that has just run."""
    held = bank.held()
    constant = all(any(tensor is own for own in held) for tensor in tensors(lowered) if tensor is not coefficients)
    way = road(lowered, geometry, strategy) if constant else None
    kind = x.shape, x.stride(1), x.dtype, x.device
    return Known(*kind, geometry, lowered.form, asked, strategy, held, _types(held), way)
