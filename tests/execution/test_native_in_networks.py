"""Layers and networks run the native operators, forward and backward, eager and compiled; B·|W| is never in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

import condconv
from condconv.conversion.apply import conditional_layers
from condconv.packing import STORAGES
from tests.execution.native_cases import NEEDS_NATIVE, Case, Problem, difference

pytestmark = NEEDS_NATIVE


class Operators(TorchDispatchMode):
    """The native operators that this thread calls, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        if namespace == "condconv":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    """A conditional network of every kind of convolution."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1)]
    kinds = ["dense", "depthwise", "pointwise"]
    return condconv.convert(nn.Sequential(*layers), num_experts=3, init="fresh", targets=kinds)


@pytest.mark.parametrize("kind", [{"kernel_size": 1}, {"kernel_size": 3}, {"kernel_size": 3, "groups": 8}], ids=str)
def test_gradients_of_a_layer_use_the_native_path(kind: dict[str, Any]) -> None:
    layer, x = condconv.CondConv2d(8, 8, num_experts=3, strategy="native", **kind), torch.randn(2, 8, 6, 6)
    with Operators() as forward:
        y = layer(x)
    with Operators() as backward:
        y.sum().backward()
    assert (forward.names, backward.names) == (["conv2d"], ["conv2d_backward"])


def test_gradients_of_a_network_use_the_native_path() -> None:
    model = network()
    layers = len(list(conditional_layers(model)))
    with condconv.use_strategy("native"), Operators() as operators:
        model(torch.randn(2, 3, 12, 12)).sum().backward()
    assert layers == 3 and operators.names == ["conv2d"] * layers + ["conv2d_backward"] * layers


def test_gradients_of_a_network_equal_those_of_the_reference() -> None:
    model, x = network(), torch.randn(3, 3, 12, 12)
    gradients = []
    for strategy in ("native", "reference"):
        with condconv.use_strategy(strategy):
            gradients.append(torch.autograd.grad(model(x).square().sum(), tuple(model.parameters())))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("storage", STORAGES)
def test_inference_uses_the_native_path(storage: Any) -> None:
    made = condconv.optimize_for_inference(network(), storage)
    with Operators() as operators:
        made(torch.randn(2, 3, 12, 12))
    assert operators.names.count("conv2d_packed") == 3 and set(operators.names) <= {"conv2d_packed", "pooled_linear"}


class Graphs:
    """A backend that keeps the graphs of forward and backward."""

    def __init__(self) -> None:
        self.operators: dict[str, list[str]] = {"forward": [], "backward": []}
        self.backend = aot_autograd(fw_compiler=self._keep("forward"), bw_compiler=self._keep("backward"))

    def _keep(self, which: str) -> Any:
        def compiler(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
            self.operators[which] += [str(n.target) for n in graph.graph.nodes if "condconv" in str(n.target)]
            return make_boxed_func(graph.forward)

        return compiler


def test_compiled_training_has_the_operators_in_its_graphs() -> None:
    torch._dynamo.reset()
    layer, x, graphs = condconv.CondConv2d(8, 12, 3, num_experts=3), torch.randn(2, 8, 6, 6), Graphs()
    expected = torch.autograd.grad(layer(x).square().sum(), tuple(layer.parameters()))
    compiled = torch.compile(layer, fullgraph=True, backend=graphs.backend)
    got = torch.autograd.grad(compiled(x).square().sum(), tuple(layer.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert graphs.operators == {
        "forward": ["condconv.conv2d.default"],
        "backward": ["condconv.conv2d_backward.default"],
    }


def test_compiled_inference_has_the_operator_in_its_graph() -> None:
    torch._dynamo.reset()
    made, x, graphs = condconv.optimize_for_inference(network(), "int8"), torch.randn(2, 3, 12, 12), Graphs()
    compiled = torch.compile(made, fullgraph=True, backend=graphs.backend)
    assert difference(compiled(x), made(x)) < 1e-5
    assert graphs.operators["forward"].count("condconv.conv2d_packed.default") == 3


def test_the_operator_is_exported_with_a_dynamic_batch() -> None:
    case = Case(3, 4, 5, 20, (6, 7), kernel=3)
    problem = Problem(case, "int8", torch.float32)

    class Packed(nn.Module):
        def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
            weights = (problem.packed, problem.scale, problem.bias, None, case.kernel_shape())
            return torch.ops.condconv.conv2d_packed(x, coefficients, *weights, *case.geometry(), 0.0)

    batch = torch.export.Dim("batch")
    given = (problem.x, problem.coefficients)
    program = torch.export.export(Packed(), given, dynamic_shapes=({0: batch}, {0: batch}))
    problem.x, problem.coefficients = problem.x.repeat(3, 1, 1, 1), torch.rand(9, 4)
    assert torch.equal(program.module()(problem.x, problem.coefficients), problem.run())


BATCH, EXPERTS, KERNEL = 32, 2, (256, 256, 3, 3)
MIXED_BYTES = BATCH * math.prod(KERNEL) * 4


def step(layer: nn.Module, x: Tensor) -> None:
    layer(x).sum().backward()


@pytest.fixture
def large() -> tuple[nn.Module, Tensor]:
    """A layer whose mixed kernels are much larger than its experts and its maps."""
    layer = condconv.CondConv2d(*KERNEL[:2], 3, padding=1, num_experts=EXPERTS)
    x = torch.randn(BATCH, 256, 4, 4, requires_grad=True)
    step(layer, x)
    return layer, x


def test_no_tensor_is_as_large_as_the_mixed_kernels(large: tuple[nn.Module, Tensor]) -> None:
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        step(*large)
    events = profile.profiler.kineto_results.events()
    allocated = [event.nbytes() for event in events if event.name() == "[memory]"]
    bank = EXPERTS * math.prod(KERNEL) * 4
    assert bank <= max(allocated) < MIXED_BYTES / 8


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be asked for on Linux only")
def test_the_peak_is_below_the_mixed_kernels(large: tuple[nn.Module, Tensor]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # The peak is now what is resident.
    before = resident("VmHWM")
    step(*large)
    assert resident("VmHWM") - before < MIXED_BYTES / 2


def resident(what: str) -> int:
    """A number of bytes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
