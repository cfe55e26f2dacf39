"""What ran, from dispatch: equal to the strategies' closed forms to the last multiply-add."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.counting import count, register_formula
from condconv.counting.executed import DispatchCount, WatchExecution
from condconv.counting.trace import Recorder
from condconv.errors import ArgumentError
from condconv.execution import strategies
from tests.contract.cases import refusal

LAYERS = {
    "1d": (lambda: condconv.CondConv1d(4, 6, 5, stride=2, padding=2, num_experts=3), (4, 17)),
    "pointwise": (lambda: condconv.CondConv2d(6, 10, 1, num_experts=3), (6, 7, 5)),
    "bias-free": (lambda: condconv.CondConv2d(6, 10, 3, bias=False, num_experts=3), (6, 7, 5)),
    "depthwise": (lambda: condconv.CondConv2d(6, 6, 3, padding=1, groups=6, num_experts=4), (6, 7, 5)),
    "grouped": (lambda: condconv.DynamicConv2d(6, 8, 3, stride=2, dilation=2, groups=2), (6, 11, 9)),
    "reflect": (lambda: condconv.CondConv2d(4, 4, 3, padding=1, padding_mode="reflect"), (4, 6, 6)),
    "same": (lambda: condconv.CondConv2d(4, 4, 4, padding="same"), (4, 6, 6)),
    "3d": (lambda: condconv.CondConv3d(2, 4, 3, padding=1, num_experts=2), (2, 4, 5, 6)),
    "transposed": (lambda: condconv.CondConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (4, 5, 6)),
    "linear": (lambda: condconv.CondLinear(5, 7, num_experts=3), (4, 5)),
    "one expert": (lambda: condconv.CondConv2d(4, 6, 3, num_experts=1), (4, 6, 6)),
}


@pytest.mark.parametrize("strategy", strategies.names())
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_closed_forms_equal_the_dispatched_count(name: str, strategy: str, batch: int) -> None:
    make, size = LAYERS[name]
    layer, x = make(), torch.randn(batch, *size)
    if reason := refusal(layer, x, strategy):
        pytest.skip(reason)
    recorder = Recorder(layer)
    dispatched, declared = DispatchCount(recorder), WatchExecution(recorder)
    with torch.no_grad(), condconv.use_strategy(strategy), recorder, declared, dispatched:
        layer(x)
    assert declared.strategies == {"": strategy}
    assert dispatched.macs[""] == declared.declared[""] > 0


def test_every_strategy_that_mixes_kernels_executes_what_the_paper_counts() -> None:
    layer = condconv.CondConv2d(4, 6, 3, bias=False, num_experts=3)
    paper = count(layer, (4, 8, 8))
    for strategy in ("reference", "grouped", "batched_gemm"):
        with condconv.use_strategy(strategy):
            executed = count(layer, (4, 8, 8), "executed")
        assert executed.rows[0].strategy == strategy
        assert (executed.rows[0].convolution, executed.rows[0].mixing) == (
            paper.rows[0].convolution,
            paper.rows[0].mixing,
        )


def test_mixture_of_experts_convolves_with_every_expert() -> None:
    layer = condconv.CondConv2d(4, 6, 3, bias=False, num_experts=3)
    with condconv.use_strategy("mixture_of_experts"):
        row = count(layer, (4, 8, 8), "executed").rows[0]
    assert row.convolution == 3 * 36 * 6 * 4 * 9
    assert row.mixing == 3 * 36 * 6  # scaling three outputs


def test_static_networks_execute_their_convolutions_and_attention() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return nn.functional.scaled_dot_product_attention(q, k, v)

    net = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(2), nn.Linear(16, 8), Attend())
    result = {row.name: row.macs for row in count(net, (3, 16, 16), "executed").rows}
    assert result == {"0": 16 * 8 * 3 * 16, "2": 8 * 8 * 16, "3": 8 * 8 * (8 + 8), "3.qkv": 8 * 24 * 8}


def test_composite_operators_of_inference_mode_are_seen() -> None:
    conv = nn.Conv2d(3, 4, 3)
    recorder = Recorder(conv)
    dispatched = DispatchCount(recorder)
    with torch.inference_mode(), recorder, dispatched:
        conv(torch.randn(1, 3, 8, 8))
    assert dispatched.macs[""] == 36 * 4 * 27


def test_a_native_operator_brings_its_formula() -> None:
    @torch.library.custom_op("condconv_test::mixed_pointwise", mutates_args=())
    def mixed_pointwise(x: Tensor, coefficients: Tensor, experts: Tensor) -> Tensor:
        return torch.einsum("bi,bn,noi->bo", x, coefficients, experts)

    class Native(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mixed_pointwise(x, torch.ones(2, 3), torch.ones(3, 5, 4))

    operator = "condconv_test::mixed_pointwise"
    register_formula(operator, lambda y, x, coefficients, experts: len(x) * (experts.numel() + experts[0].numel()))
    assert count(Native(), torch.randn(2, 4), "executed").macs == 2 * (3 * 20 + 20)
    with pytest.raises(ArgumentError, match="formula already"):
        register_formula(operator, lambda *_: 0)


def test_header_names_the_convention_and_the_strategy() -> None:
    result = count(condconv.CondConv2d(4, 6, 3, num_experts=3), (4, 8, 8), "executed")
    text = str(result)
    assert "'executed'" in text.splitlines()[0] and result.rows[0].strategy in text
    assert "executed_mixing_macs" in result.to_csv().splitlines()[0]
