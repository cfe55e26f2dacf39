"""How a layer may be stored, what that weighs, and by how much its kernels then differ over given data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from condconv.banks import Affine, Bank, Packing
from condconv.lowered import kernels_of
from condconv.packing import INT4

_EXAMPLES = 16
"""Over which kernels are compared."""


class Option(NamedTuple):
    """A way to store a layer."""

    packing: Packing
    bytes: int
    error: float
    """Root mean square of the difference of the kernels, over that of the kernels."""


@torch.no_grad()
def options_of(
    bank: Bank, norm: Affine | None, coefficients: Tensor, num_experts: int, storages: Sequence[str]
) -> list[Option]:
    """The ways to store a bank in one of the storages, the experts themselves first, then fewer and fewer kernels.

    Args:
        bank: of a layer.
        norm: the batch norm behind the layer.
        coefficients: over the data, (N, D).
        num_experts: n.
        storages: "f32", "bf16", "int8"; "int4" is for principal kernels alone.
    """
    some = _some(coefficients)
    expected = _kernels(bank.pack(Packing("f32"), norm), some)
    found = []
    for storage in storages:
        whole = [] if storage == INT4 else [None]
        most = num_experts if storage == INT4 else num_experts - 1
        for kernels in (*whole, *range(most, 0, -1)):
            packing = Packing(storage, kernels=kernels, coefficients=None if kernels is None else coefficients)
            packed = bank.pack(packing, norm)
            error = _relative(_kernels(packed, some) - expected, expected)
            found.append(Option(packing, weights_bytes(packed), error))
    return found


@torch.no_grad()
def variation(bank: Bank, coefficients: Tensor) -> float:
    """By how much a bank's kernels differ over the data from that of the mean coefficients; see `Option.error`."""
    kernels = _kernels(bank, _some(coefficients))
    return _relative(kernels - _kernels(bank, coefficients.mean(dim=0, keepdim=True)), kernels)


def choose(options: Mapping[str, Sequence[Option]], level: float) -> dict[str, Option]:
    """The smallest option of each layer with an error of at most `level`; where there is none, the nearest."""
    chosen = {}
    for name, of_layer in options.items():
        allowed = [option for option in of_layer if option.error <= level]
        if allowed:
            chosen[name] = min(allowed, key=lambda option: (option.bytes, option.error))
        else:
            chosen[name] = min(of_layer, key=lambda option: option.error)
    return chosen


def levels_of(options: Iterable[Sequence[Option]], most: float = float("inf")) -> list[float]:
    """The errors of all options up to `most`: where another choice may be made, in ascending order."""
    return sorted({option.error for of_layer in options for option in of_layer if option.error <= most})


def weights_bytes(module: nn.Module) -> int:
    """What its weights take in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _some(coefficients: Tensor) -> Tensor:
    """Evenly spaced rows of (N, D)."""
    return coefficients[torch.linspace(0, len(coefficients) - 1, min(_EXAMPLES, len(coefficients))).round().long()]


def _kernels(bank: Bank, coefficients: Tensor) -> Tensor:
    """Of each example, (B, *kernel), f32."""
    return kernels_of(bank(coefficients.float().to(bank.like.device)), torch.float32)


def _relative(difference: Tensor, of: Tensor) -> float:
    return float(difference.norm() / of.norm().clamp_min(1e-30))
