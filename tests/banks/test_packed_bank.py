"""Packed experts compute what the dense ones do that they stand for: every storage, geometry and strategy."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.banks import PackedBank
from condconv.counting.executed import DispatchCount, WatchExecution
from condconv.counting.trace import Recorder
from condconv.execution import strategies
from condconv.packing import STORAGES
from tests.contract.cases import LAYERS, TWO_D, example_input, example_layer, name_of

KINDS: dict[str, dict[str, Any]] = {
    "dense": {"kernel_size": 3, "padding": 1, "stride": 2},
    "pointwise": {"kernel_size": 1},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 24},
    "grouped": {"kernel_size": (3, 1), "groups": 4, "dilation": 2, "bias": False},
}
SERVING = [name for name in strategies if name != "mixture_of_experts"]
STORAGE = pytest.mark.parametrize("storage", STORAGES)


def packed_copy(layer: Any, storage: str, shift: Tensor | None = None, threshold: float = 0.0) -> Any:
    """The layer with its experts packed."""
    made = copy.deepcopy(layer)
    made.bank = PackedBank(layer.weight, layer.bias, shift, layer.geometry.groups, storage, threshold)
    return made


def rounded_copy(layer: Any, packed: Any) -> Any:
    """The layer with dense experts that have the values of the packed ones."""
    made = copy.deepcopy(layer)
    with torch.no_grad():
        made.weight.copy_(packed.weight)
    return made


@STORAGE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", TWO_D, ids=name_of)
def test_every_strategy_and_batch(cls: Any, kind: str, storage: str) -> None:
    layer = cls(24, 24, num_experts=3, **KINDS[kind]).eval()
    packed = packed_copy(layer, storage)
    dense = rounded_copy(layer, packed)
    for batch in (1, 2, 7, 0):
        x = torch.randn(batch, 24, 6, 5)
        with torch.no_grad():
            with condconv.use_strategy("reference"):
                expected = dense(x)
            lowered = packed.bank(torch.rand(batch, 3))
            served = [name for name in SERVING if strategies[name].supports(lowered, layer.geometry) is None]
            assert "reference" in served and len(served) > 1
            for strategy in served:
                with condconv.use_strategy(strategy):
                    torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=1e-5)


@STORAGE
@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
def test_every_layer_of_every_variant(cls: Any, storage: str) -> None:
    layer = example_layer(cls, num_experts=3).eval()
    packed = packed_copy(layer, storage)
    x = example_input(cls, 2)
    torch.testing.assert_close(packed(x), rounded_copy(layer, packed)(x), atol=1e-5, rtol=1e-5)
    error = float((packed(x) - layer(x)).abs().max() / layer(x).abs().max())
    assert error <= {"f32": 1e-6, "bf16": 5e-3, "int8": 1e-2}[storage]
    graph = torch.fx.symbolic_trace(nn.Sequential(packed))
    assert torch.equal(graph(x), packed(x))


def test_compiled_and_exported() -> None:
    torch._dynamo.reset()
    packed = packed_copy(condconv.CondConv2d(8, 12, 3, num_experts=3), "int8").eval()
    x = torch.randn(3, 8, 6, 6)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), packed(x), atol=1e-5, rtol=1e-5)
    program = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (2, 5):
        x = torch.randn(batch, 8, 6, 6)
        torch.testing.assert_close(program.module()(x), packed(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
def test_the_shift_is_added_and_not_mixed(cls: Any) -> None:
    layer = example_layer(cls, num_experts=3)
    shift = torch.randn(12)
    for bias in (True, False):
        if not bias:
            layer.bank.bias = None
        packed = packed_copy(layer, "f32", shift)
        x, coefficients = example_input(cls, 2), torch.rand(2, 3)
        columns = shift if cls.static_type is nn.Linear else shift.reshape(-1, *[1] * cls.rank)
        torch.testing.assert_close(packed(x, coefficients), layer(x, coefficients) + columns, atol=1e-5, rtol=1e-5)
        alpha = torch.tensor([0.2, 1.5, -0.3])
        torch.testing.assert_close(packed.to_static(alpha)(x), packed(x, alpha.expand(2, 3)), atol=1e-5, rtol=1e-5)


def test_experts_up_to_the_threshold_are_left_out() -> None:
    layer = condconv.CondConv2d(4, 6, 3, num_experts=3)
    coefficients = torch.tensor([[0.1, -0.1, 0.9], [0.11, 0.0, -0.5]])
    kept = torch.tensor([[0.0, 0.0, 0.9], [0.11, 0.0, -0.5]])
    x = torch.randn(2, 4, 5, 5)
    packed = packed_copy(layer, "f32", threshold=0.1)
    torch.testing.assert_close(packed(x, coefficients), layer(x, kept), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed_copy(layer, "f32")(x, coefficients), layer(x, coefficients), atol=1e-5, rtol=1e-5)
    assert "threshold=0.1" in repr(packed)
    coefficients[0, 0] = math.nan  # a coefficient that is no number is not small
    y = packed(x, coefficients)
    assert torch.isnan(y[0]).all() and torch.isfinite(y[1]).all()


@STORAGE
def test_casts_and_moves_keep_the_storage(storage: str) -> None:
    layer = packed_copy(condconv.CondConv2d(8, 12, 3, num_experts=3), storage, torch.randn(12)).eval()
    x, before = torch.randn(2, 8, 5, 5), {name: t.clone() for name, t in layer.bank.state_dict().items()}
    y = layer(x).detach()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        z = layer.to(dtype)(x.to(dtype))
        assert z.dtype == dtype
        assert float((z.float() - y).abs().max()) < 0.02
    layer.float().to(memory_format=torch.channels_last)
    after = layer.bank.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(t, after[name]) and t.dtype == after[name].dtype for name, t in before.items())
    assert layer.bank.storage == storage
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    empty = copy.deepcopy(layer).to("meta").half().to_empty(device="cpu")
    assert {t.dtype for t in empty.bank.buffers()} == {t.dtype for t in layer.bank.buffers()}
    empty.load_state_dict(layer.state_dict())
    torch.testing.assert_close(empty.float()(x), layer(x), atol=1e-2, rtol=1e-2)  # its router was in half


def test_experts_of_another_storage_are_not_loaded() -> None:
    layer = condconv.CondConv2d(8, 12, 3, num_experts=3)
    state = packed_copy(layer, "int8").state_dict()
    with pytest.raises(
        condconv.CheckpointError, match=r"bank\.packed: the file holds int8 experts, .* bf16 ones; load"
    ):
        packed_copy(layer, "bf16").load_state_dict(state)


@STORAGE
def test_closed_forms_equal_the_dispatched_count(storage: str) -> None:
    packed = packed_copy(condconv.CondConv2d(6, 10, 3, num_experts=3), storage)
    recorder = Recorder(packed)
    for strategy in ("reference", "grouped", "batched_gemm"):
        dispatched, declared = DispatchCount(recorder), WatchExecution(recorder)
        with torch.no_grad(), condconv.use_strategy(strategy), recorder, declared, dispatched:
            packed(torch.randn(2, 6, 7, 5))
        assert dispatched.macs[""] == declared.declared[""] > 0


def test_parameters_and_paper_multiply_adds_are_those_of_before() -> None:
    layer = condconv.CondConv2d(6, 10, 3, num_experts=3)
    before, after = (condconv.count(made, (6, 7, 5)) for made in (layer, packed_copy(layer, "int8")))
    assert (before.params, before.macs) == (after.params, after.macs)
    assert before.rows[0].params == after.rows[0].params


def test_a_mixture_of_experts_cannot_serve_it() -> None:
    packed = packed_copy(condconv.CondConv2d(4, 6, 3), "f32")
    message = "strategy='mixture_of_experts' cannot serve it: the experts are packed"
    with pytest.raises(condconv.StrategyError, match=message), condconv.use_strategy("mixture_of_experts"):
        packed(torch.randn(1, 4, 5, 5))
