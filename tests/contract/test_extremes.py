"""Absurd geometries: what `nn.Conv2d` computes is computed, everything else is refused before work begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.arguments import LARGEST
from condconv.geometry import ConvGeometry

STRATEGIES = ("reference", "grouped", "batched_gemm", "mixture_of_experts")
POSSIBLE: list[dict[str, Any]] = [
    {"stride": LARGEST},
    {"stride": 2**16, "padding": 1},
    {"stride": (LARGEST, 1), "padding": (0, 2)},
    {"stride": LARGEST, "groups": 2},
    {"kernel_size": 1, "stride": LARGEST},
    {"kernel_size": 1, "dilation": LARGEST},
    {"dilation": 3, "padding": 3, "stride": 2**20},
]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("arguments", POSSIBLE, ids=str)
def test_forward_and_backward_are_those_of_the_static_layer(arguments: dict[str, Any], strategy: str) -> None:
    kwargs = {"kernel_size": 3, **arguments}
    layer = condconv.CondConv2d(4, 8, **kwargs, num_experts=3, dtype=torch.float64, strategy=strategy)
    coefficients = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).expand(2, 3)
    static = layer.to_static(coefficients[0])
    x, same = (torch.ones(2, 4, 8, 8, dtype=torch.float64).cumsum(3).requires_grad_() for _ in range(2))
    y, wanted = layer(x, coefficients), static(same)
    y.sum().backward(), wanted.sum().backward()
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(x.grad, same.grad)
    torch.testing.assert_close(layer.weight.grad[1], static.weight.grad)


IMPOSSIBLE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"stride": 2**32}, condconv.ArgumentError, "stride=4294967296 must be an integer of at most 2147483647"),
    ({"stride": (1, 2**63)}, condconv.ArgumentError, "must be an integer of at most"),
    ({"padding": 2**63 - 1}, condconv.ArgumentError, "padding=9223372036854775807 must be an integer of at most"),
    ({"padding": LARGEST}, condconv.ShapeError, "more than a tensor can have"),
    ({"padding": LARGEST, "padding_mode": "replicate"}, condconv.ShapeError, "more than a tensor can have"),
    ({"dilation": LARGEST}, condconv.ShapeError, "too small"),
    ({"num_experts": LARGEST}, condconv.ArgumentError, "num_experts=2147483647 must be at most 1048576"),
    ({"num_experts": 2**20, "kernel_size": LARGEST}, condconv.ArgumentError, "more than a tensor can have"),
]


@pytest.mark.parametrize("arguments, kind, message", IMPOSSIBLE, ids=[str(a) for a, _, _ in IMPOSSIBLE])
def test_what_cannot_be_is_refused(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        condconv.CondConv2d(4, 8, **{"kernel_size": 3, "num_experts": 3, **arguments})(torch.zeros(2, 4, 8, 8))


OTHER_TYPES = (torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64)


@pytest.mark.parametrize("strategy", ("auto", *STRATEGIES))
@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
def test_an_input_of_another_type_than_the_layer(dtype: torch.dtype, strategy: str) -> None:
    convolution = condconv.CondConv2d(4, 8, 3, num_experts=3, strategy=strategy)
    matrix = condconv.CondLinear(4, 8, num_experts=3, strategy=strategy)
    for layer, x in ((convolution, torch.ones(2, 4, 8, 8, dtype=dtype)), (matrix, torch.ones(2, 4, dtype=dtype))):
        for coefficients in (None, torch.ones(2, 3)):
            with pytest.raises(condconv.ArgumentError, match=rf"input='?{dtype}.*; convert the input"):
                layer(x, coefficients)


def test_a_sparse_input() -> None:
    with pytest.raises(condconv.ArgumentError, match=r"torch.sparse_coo' is no dense tensor .*x\.to_dense"):
        condconv.CondConv2d(4, 8, 3, num_experts=3)(torch.ones(2, 4, 8, 8).to_sparse())


def test_autocast_takes_inputs_of_its_types() -> None:
    layer = condconv.CondConv2d(4, 8, 3, num_experts=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 4, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
        with pytest.raises(condconv.ArgumentError, match="input=torch.float64 is of another type"):
            layer(torch.ones(2, 4, 8, 8, dtype=torch.float64))


def test_a_transposed_convolution_that_would_be_too_large() -> None:
    layer = condconv.CondConvTranspose2d(4, 8, 3, stride=LARGEST, num_experts=2)
    assert layer(torch.zeros(1, 4, 1, 1)).shape == (1, 8, 3, 3)
    with pytest.raises(condconv.ShapeError, match="more than a tensor can have"):
        layer(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_smallest_input_is_the_first_that_has_an_output(transposed: bool) -> None:
    for s, p, d, k, o in [(1, 0, 1, 1, 0), (2, 3, 1, 3, 1), (3, 1, 4, 5, 2), (5, 9, 2, 3, 0), (2, 0, 7, 2, 1)]:
        geometry = ConvGeometry((s,), (p,), (d,), transposed=transposed, output_padding=(o,) if transposed else ())
        first = next(size for size in range(-60, 60) if geometry.output_size([size], [k])[0] >= 1)
        assert geometry.smallest_input(0, k) == first


def test_no_layer_takes_time_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    output_size = ConvGeometry.output_size
    monkeypatch.setattr(ConvGeometry, "output_size", lambda *a: calls.append(a) or output_size(*a))
    condconv.CondConv2d(4, 8, 3, dilation=LARGEST, num_experts=2)
    assert len(calls) == 0


@pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor(3).numpy()[()]], ids=["torch", "numpy"])
def test_integers_of_numpy_and_torch_are_integers(value: Any) -> None:
    layer = condconv.CondConv2d(value, value, value, padding=(value, value), num_experts=value)
    assert isinstance(layer.kernel_size[0], int) and isinstance(layer.in_channels, int)
    static = nn.Conv2d(3, 3, 3, padding=3)
    assert layer(torch.zeros(1, 3, 8, 8)).shape == static(torch.zeros(1, 3, 8, 8)).shape
