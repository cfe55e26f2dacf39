"""CUDA graphs: no layer's forward or backward reads a value off the device, and on a device all are captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import condconv
from condconv.execution import AUTO
from condconv.inference import optimize_for_inference
from condconv.routers import PooledLinear, Router, SoftmaxGate, SqueezeExcite, TopKGate, attach_scope
from condconv.variants import variants
from tests.contract.cases import (
    LAYERS,
    MIXTURES,
    TWO_D,
    Block,
    example_input,
    example_layer,
    name_of,
    serving,
    shared_router,
)

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}
"""Operators whose result the CPU must see, or whose output's size the device decides."""


class NothingWaits(TorchDispatchMode):
    """Refuses operators for which the CPU would have to wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in WAITING or masked:
            raise AssertionError(f"{func} would wait for the device")
        return func(*args, **(kwargs or {}))


def everything(channels: int, n: int) -> Router:
    """The default router with all that it may do in training."""
    return PooledLinear(channels, n, hidden_channels=4, dropout=0.2, expert_dropout=0.3)


ROUTERS: dict[str, Callable[[int, int], Router]] = {
    "plain": PooledLinear,
    "everything": everything,
    "softmax": lambda channels, n: PooledLinear(channels, n, gate=SoftmaxGate(1.0), expert_dropout=0.3),
    "top-k": lambda channels, n: PooledLinear(channels, n, gate=TopKGate(SoftmaxGate(1.0), 2, noise_std=0.5)),
    "squeeze": SqueezeExcite,
}


@pytest.fixture(autouse=True)
def _tensors_are_read_where_refused() -> None:
    with NothingWaits(), pytest.raises(AssertionError, match="would wait"):
        float(torch.ones(()))
    with NothingWaits(), pytest.raises(AssertionError, match="would wait"):
        torch.ones(2)[torch.tensor([True, False])]


def three_passes(module: nn.Module, x: Tensor, training: bool) -> None:
    """Three passes, as a watch over temperatures speaks only after the first; with gradients in training."""
    module.train(training)
    with NothingWaits(), torch.set_grad_enabled(training):
        for _ in range(3):
            y = module(x)
            if training:
                y.sum().backward()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
def test_no_layer_waits_with_any_strategy(cls: Any, training: bool) -> None:
    x = example_input(cls, 3, size=4)
    layer = example_layer(cls, num_experts=3)
    if training:
        _at_temperature_1(layer)
    for strategy in [AUTO, *serving(layer, x)]:
        with condconv.use_strategy(strategy):
            three_passes(layer, x, training)


def _at_temperature_1(module: nn.Module) -> None:
    """So that nobody is warned of it."""
    for gate in module.modules():
        if isinstance(gate, SoftmaxGate):
            gate.anneal(1.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("router", ROUTERS)
def test_no_router_waits(router: str, training: bool) -> None:
    made = ROUTERS[router](6, 3)
    _at_temperature_1(made)
    three_passes(made, torch.randn(4, 6, 5, 5), training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", MIXTURES)
def test_no_routing_scope_waits(variant: str, training: bool) -> None:
    three_passes(scoped(variant), torch.randn(3, 4, 5, 5), training)


def test_no_inference_form_waits() -> None:
    for storage in ("f32", "bf16", "int8"):
        network = nn.Sequential(condconv.CondConv2d(4, 4, 3, num_experts=2)).eval()
        form = optimize_for_inference(network, experts=storage)
        three_passes(form, torch.randn(2, 4, 5, 5), training=False)


def test_a_forgotten_temperature_is_told_without_reading_it() -> None:
    gate = SoftmaxGate(1.0)
    gate.load_state_dict(SoftmaxGate(30.0).state_dict())
    with pytest.warns(UserWarning, match="training at softmax temperature 30 and"):
        three_passes(gate, torch.randn(2, 4, requires_grad=True), training=True)


def scoped(variant: str) -> nn.Module:
    """A block whose layers share a router."""
    layer: Any = next(kind for kind in variants[variant].layers if kind in TWO_D)
    block = Block(layer, 4, num_experts=3)
    members = [m for m in block.modules() if isinstance(m, layer)]
    attach_scope(block, "", members, shared_router(members, 4))
    _at_temperature_1(block)
    return block


def captured(module: nn.Module, x: Tensor, training: bool) -> tuple[Tensor, Callable[[], None]]:
    """The output that a captured pass writes, and what replays the pass, its backward included."""

    def step() -> Tensor:
        y = module(x)
        if training:
            torch.autograd.backward(y.square().sum())
        return y

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            module.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(stream)
    module.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # Gradients are summed up on the stream that they began on.
        y = step()
    return y.detach(), graph.replay  # Nothing of the captured pass outlives it, else its stream would too.


def replays(module: nn.Module, x: Tensor, training: bool) -> None:
    """Capture a pass, replay it on other images and compare with eager, gradients included."""
    module.train(training)
    with torch.set_grad_enabled(training):
        y, replay = captured(module, x, training)
        other = torch.randn_like(x)
        x.copy_(other)
        replay()
        found = [y.detach().clone(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]
        module.zero_grad(set_to_none=True)
        expected = module(other)
        if training:
            expected.square().sum().backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    torch.testing.assert_close(found, [expected.detach(), *gradients], rtol=1e-3, atol=1e-3)


@ON_GPU
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
def test_layers_are_captured_and_replayed(cls: Any, training: bool) -> None:
    layer = example_layer(cls, num_experts=3).cuda()
    _at_temperature_1(layer)
    for strategy in serving(layer, example_input(cls, 3, device="cuda")):
        with condconv.use_strategy(strategy):
            replays(layer, example_input(cls, 3, device="cuda"), training)


@ON_GPU
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", MIXTURES)
def test_routing_scopes_are_captured_and_replayed(variant: str, training: bool) -> None:
    block = scoped(variant).cuda()
    block.norm.momentum = 0.0
    replays(block, torch.randn(3, 4, 8, 8, device="cuda"), training)


@ON_GPU
@pytest.mark.filterwarnings("ignore")  # advice of torch's compiler on the device at hand
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", MIXTURES)
def test_compiled_code_with_less_overhead_is_the_same(variant: str, training: bool) -> None:
    block = scoped(variant).cuda().train(training)
    compiled = torch.compile(block, mode="reduce-overhead", fullgraph=True)
    x = torch.randn(3, 4, 8, 8, device="cuda")
    results = []
    for run in (block, compiled, compiled, compiled):
        block.zero_grad(set_to_none=True)
        torch.compiler.cudagraph_mark_step_begin()
        with torch.set_grad_enabled(training):
            y = run(x)
            if training:
                y.square().sum().backward()
        results.append([y.detach().clone(), *(p.grad.clone() for p in block.parameters() if p.grad is not None)])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-3)
