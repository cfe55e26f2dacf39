"""Every strategy computes what the reference computes, and the reference what the definition says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import condconv
from condconv.errors import StrategyError
from condconv.execution import execute, strategies
from condconv.geometry import ConvGeometry
from condconv.lowered import Kernels
from tests.contract.cases import (
    CONVOLUTIONS,
    LAYERS,
    STRATEGIES,
    example_input,
    example_layer,
    geometries,
    name_of,
    refusal,
    serving,
    static_output,
)

LINEAR = [layer for layer in LAYERS if layer not in CONVOLUTIONS]
UNHURRIED = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def gradients(layer: Any, x: Tensor, strategy: str, coefficients: Tensor | None = None) -> list[Tensor]:
    """Output, and the gradients of input, coefficients' source and experts, for one strategy."""
    x = x.clone().requires_grad_()
    leaves = [x, *layer.parameters()]
    if coefficients is not None:
        coefficients = coefficients.clone().requires_grad_()
        leaves = [x, coefficients, *layer.bank.parameters()]
    with condconv.use_strategy(strategy):
        y = layer(x, coefficients)
    assert condconv.last_strategy(layer) == strategy
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


@pytest.mark.parametrize("cls", CONVOLUTIONS, ids=name_of)
def test_strategies_equal_the_reference_and_the_definition(cls: Any) -> None:
    @UNHURRIED
    @given(geometry=geometries(cls), batch=st.sampled_from([1, 2, 7]))
    def check(geometry: tuple[dict[str, Any], tuple[int, ...]], batch: int) -> None:
        arguments, size = geometry
        layer = cls(**arguments, dtype=torch.float64)
        x = torch.randn(batch, layer.in_channels, *size, dtype=torch.float64)
        coefficients = torch.rand(batch, layer.num_experts, dtype=torch.float64)
        torch.testing.assert_close(
            layer(x, coefficients), static_output(layer, x, coefficients), atol=1e-10, rtol=1e-10
        )
        for source in (None, coefficients):
            expected = gradients(layer, x, "reference", source)
            for strategy in serving(layer, x):
                for mine, theirs in zip(gradients(layer, x, strategy, source), expected, strict=True):
                    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)

    check()


@pytest.mark.parametrize("cls", LINEAR, ids=name_of)
@pytest.mark.parametrize("positions", [(), (3,), (2, 4)], ids=str)
def test_linear_strategies_equal_the_reference_and_the_definition(cls: Any, positions: tuple[int, ...]) -> None:
    layer = cls(6, 5, num_experts=3, dtype=torch.float64)
    x = torch.randn(4, *positions, 6, dtype=torch.float64)
    coefficients = torch.rand(4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x, coefficients), static_output(layer, x, coefficients), atol=1e-10, rtol=1e-10)
    expected = gradients(layer, x, "reference")
    for strategy in serving(layer, x):
        for mine, theirs in zip(gradients(layer, x, strategy), expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_rounding_errors_are_those_of_the_reference(cls: Any, dtype: torch.dtype, channels_last: bool) -> None:
    layer = example_layer(cls, num_experts=4, dtype=torch.float64)
    x = example_input(cls, 7, dtype=torch.float64)
    coefficients = torch.rand(7, 4, dtype=torch.float64)
    rounded = example_layer(cls, num_experts=4, dtype=dtype)
    rounded.load_state_dict(layer.state_dict())
    layer.load_state_dict(rounded.state_dict())  # the f64 layer has the rounded weights
    low, low_coefficients = x.to(dtype), coefficients.to(dtype)
    if channels_last and x.dim() == 4:
        low = low.to(memory_format=torch.channels_last)
    with condconv.use_strategy("reference"):
        exact = layer(low.double(), low_coefficients.double())

    @torch.no_grad()
    def error(strategy: str) -> float:
        with condconv.use_strategy(strategy):
            return float((rounded(low, low_coefficients).double() - exact).square().mean().sqrt())

    for strategy in serving(rounded, low):
        assert error(strategy) <= 3 * error("reference") + 1e-12, strategy


@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(cls: Any, strategy: str) -> None:
    layer = example_layer(cls)
    full = layer(example_input(cls, 2))
    if reason := refusal(layer, example_input(cls, 2), strategy):
        pytest.skip(reason)
    layer.strategy = strategy
    y = layer(example_input(cls, 0))
    assert y.shape == (0, *full.shape[1:])
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.bank.parameters())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_already_mixed_kernels_are_served(strategy: str) -> None:
    geometry = ConvGeometry((1, 1), (1, 1), (1, 1))
    x, weight, bias = torch.randn(3, 4, 5, 5), torch.randn(3, 6, 4, 3, 3), torch.randn(3, 6)
    if reason := strategies[strategy].supports(Kernels(weight, bias), geometry):
        assert strategy != "reference"
        pytest.skip(reason)
    y = execute(x, Kernels(weight, bias), geometry, strategy)
    expected = torch.cat([nn.functional.conv2d(x[i : i + 1], weight[i], bias[i], padding=1) for i in range(3)])
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_a_pinned_strategy_that_cannot_serve_raises() -> None:
    from condconv.execution import choose

    geometry = ConvGeometry((1, 1), (1, 1), (1, 1))
    lowered = Kernels(torch.randn(1, 6, 4, 3, 3), None)
    with pytest.raises(StrategyError, match="stem: strategy='mixture_of_experts' cannot serve it.*mixing weights"):
        choose(torch.randn(1, 4, 5, 5), lowered, geometry, "mixture_of_experts", "stem")


def test_pins_nest_and_outrank_the_layer() -> None:
    layer = condconv.CondConv2d(4, 4, 3, num_experts=2, strategy="grouped")
    x = torch.randn(2, 4, 5, 5)
    layer(x)
    assert condconv.last_strategy(layer) == "grouped"
    with condconv.use_strategy("reference"):
        with condconv.use_strategy("batched_gemm"):
            layer(x)
            assert condconv.last_strategy(layer) == "batched_gemm"
        layer(x)
        assert condconv.last_strategy(layer) == "reference"
    with pytest.raises(condconv.UnknownNameError, match="did you mean 'grouped'"), condconv.use_strategy("groupd"):
        pass


@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_planner_chooses_what_serves_the_layer_and_computes_the_same(cls: Any, batch: int) -> None:
    layer, x = example_layer(cls, dtype=torch.float64), example_input(cls, batch, dtype=torch.float64)
    y = layer(x)
    assert condconv.last_strategy(layer) in serving(layer, x)
    with condconv.use_strategy("reference"):
        torch.testing.assert_close(y, layer(x), atol=1e-10, rtol=1e-10)


def test_pointwise_layers_keep_the_memory_format() -> None:
    layer = condconv.CondConv2d(8, 16, 1)
    x = torch.randn(2, 8, 6, 6)
    assert layer(x).is_contiguous()
    assert layer(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
