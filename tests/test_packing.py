"""The packed layout: exact round trips, the documented order, and the error of int8."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from condconv.errors import ArgumentError
from condconv.packing import COLUMNS, ROWS, STORAGES, matrix_shape, pack, unpack

KERNELS = {
    "dense": ((40, 24, 3, 3), 1),
    "pointwise": ((33, 70, 1, 1), 1),
    "depthwise": ((24, 1, 5, 5), 24),
    "depth multiplier": ((12, 1, 3, 3), 6),
    "grouped": ((12, 3, 3, 3), 2),
    "linear": ((7, 9), 1),
    "1d": ((5, 70, 3), 1),
    "3d": ((6, 4, 2, 3, 2), 2),
    "one": ((1, 1, 3, 3), 1),
}
EVERY = pytest.mark.parametrize("name", KERNELS)


def experts_of(name: str, n: int = 3) -> tuple[Tensor, tuple[int, ...], int]:
    shape, groups = KERNELS[name]
    return torch.randn(n, *shape), shape, groups


@EVERY
@pytest.mark.parametrize("storage", ["f32", "bf16"])
def test_floating_storages_come_back_bit_for_bit(name: str, storage: str) -> None:
    experts, shape, groups = experts_of(name)
    packed, scale = pack(experts, groups, storage)
    assert scale is None and packed.dim() == 1 and packed.dtype == STORAGES[storage]
    assert torch.equal(unpack(packed, scale, shape, groups), experts.to(STORAGES[storage]))


@EVERY
def test_int8_is_wrong_by_half_a_step_at_most(name: str) -> None:
    experts, shape, groups = experts_of(name)
    experts[1, 0] = 0.0
    packed, scale = pack(experts, groups, "int8")
    assert packed.dtype == torch.int8 and scale is not None and scale.dtype == torch.float32
    back = unpack(packed, scale, shape, groups)
    step = experts.flatten(2).abs().amax(dim=2) / 127
    assert bool(((back - experts).flatten(2).abs().amax(dim=2) <= step * 0.5001).all())
    assert not back[1, 0].any()
    matrix_groups, columns, _ = matrix_shape(shape, groups)
    assert scale.shape == (3, matrix_groups * math.ceil(columns / COLUMNS) * COLUMNS)
    by_group = scale.reshape(3, matrix_groups, -1)
    assert not by_group[:, :, columns:].any() and bool((by_group[:, :, :columns] > 0).all())


@EVERY
def test_elements_stand_where_the_layout_says(name: str) -> None:
    experts, shape, groups = experts_of(name)
    packed, _ = pack(experts, groups, "f32")
    matrix_groups, columns, rows = matrix_shape(shape, groups)
    channels_last = experts.movedim(2, -1).reshape(3, matrix_groups, columns, rows)  # row = (*k, i)
    position = 0
    for g in range(matrix_groups):
        for block in range(0, columns, COLUMNS):
            for chunk in range(0, rows, ROWS):
                for expert in range(3):
                    panel = channels_last[expert, g, block : block + COLUMNS, chunk : chunk + ROWS].T
                    here = packed[position : position + COLUMNS * len(panel)].reshape(len(panel), COLUMNS)
                    assert torch.equal(here[:, : panel.shape[1]], panel)
                    assert not here[:, panel.shape[1] :].any()
                    position += here.numel()
    assert position == packed.numel()


def test_what_cannot_be_packed_is_named() -> None:
    experts, _, groups = experts_of("dense")
    with pytest.raises(ArgumentError, match="'int2' is no storage; use one of f32, bf16, int8, int4"):
        pack(experts, groups, "int2")
    experts[0, 0, 0, 0, 0] = math.nan
    with pytest.raises(ArgumentError, match="'int8' cannot hold experts that are NaN or infinite; use 'f32'"):
        pack(experts, groups, "int8")
    packed, scale = pack(experts, groups, "f32")
    assert bool(torch.isnan(unpack(packed, scale, KERNELS["dense"][0], groups)).any())
