"""What the planner chooses on a CUDA device, asked of fake tensors: no device is needed."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from condconv.execution import choose
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture

DEPTHWISE, DENSE, POINTWISE = "depthwise", "dense", "pointwise"


@pytest.mark.parametrize(
    ("kind", "batch", "size", "dtype", "expected"),
    [
        (POINTWISE, 32, 56, torch.float32, "batched_gemm"),
        (POINTWISE, 1, 7, torch.bfloat16, "batched_gemm"),
        (DENSE, 1, 14, torch.bfloat16, "grouped"),
        (DENSE, 32, 14, torch.bfloat16, "batched_gemm"),
        (DENSE, 32, 14, torch.float32, "grouped"),
        (DENSE, 128, 56, torch.bfloat16, "grouped"),
        (DEPTHWISE, 32, 7, torch.float32, "grouped"),
        (DEPTHWISE, 64, 56, torch.float32, "triton"),
    ],
)
def test_the_choice_is_the_fastest_measured(
    kind: str, batch: int, size: int, dtype: torch.dtype, expected: str
) -> None:
    if expected == "triton":
        pytest.importorskip("triton")
    taps = 1 if kind == POINTWISE else 3
    groups = 64 if kind == DEPTHWISE else 1
    with FakeTensorMode(), torch.device("cuda"):
        x = torch.empty(batch, 64, size, size, dtype=dtype)
        experts = torch.empty(4, 64, 64 // groups, taps, taps, dtype=dtype)
        mixture = Mixture(torch.empty(batch, 4, dtype=dtype), experts, None)
        geometry = ConvGeometry((1, 1), (taps // 2,) * 2, (1, 1), groups)
        assert choose(x, mixture, geometry, "auto", "layer") == expected
