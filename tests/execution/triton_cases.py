"""What the Triton strategy must do, on a GPU or in Triton's interpreter: `test_triton.py` runs this file in a process
of its own, for Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import condconv
from condconv.counting.executed import DispatchCount
from condconv.counting.trace import Recorder
from condconv.execution import execute, executed_macs, strategies
from condconv.execution.native.triton_ops import INTERPRETED, depthwise, depthwise_backward
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture

DEVICE = "cpu" if INTERPRETED else "cuda"
SLOW = [pytest.mark.slow] if INTERPRETED else []

# batch, channels, n, map, kernel, stride, padding, dilation
SHAPES: dict[str, tuple[Any, ...]] = {
    "plain": (2, 5, 4, (4, 3), (3, 3), (1, 1), (1, 1), (1, 1)),
    "uneven": (2, 33, 2, (6, 5), (3, 2), (2, 1), (2, 0), (1, 2)),
    "one tap": (5, 35, 3, (5, 3), (1, 1), (2, 2), (0, 0), (1, 1)),
    "one expert": (1, 4, 1, (2, 2), (1, 1), (1, 1), (0, 0), (1, 1)),
    "nine experts": (2, 3, 9, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    "large map": (1, 2, 2, (17, 16), (5, 5), (1, 1), (2, 2), (1, 1)),
}
QUICK = ("uneven", "one tap")


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Mixture, ConvGeometry]:
    """Input, mixture with a coefficient that is zero, geometry."""
    batch, channels, n, size, kernel, stride, padding, dilation = SHAPES[name]
    experts = torch.randn(n, channels, 1, *kernel)
    coefficients = torch.rand(batch, n)
    coefficients[0, 1:2] = 0.0
    tensors = (torch.randn(batch, channels, *size), coefficients, experts / math.sqrt(experts[0, 0].numel()))
    x, coefficients, experts = (t.to(DEVICE, dtype) for t in tensors)
    x = x.to(memory_format=torch.channels_last)
    return x, Mixture(coefficients, experts, None), ConvGeometry(stride, padding, dilation, channels)


def run(strategy: str, x: Tensor, mixture: Mixture, geometry: ConvGeometry, dtype: torch.dtype) -> list[Tensor]:
    """Output, and the gradients of input, coefficients and experts, computed in `dtype`."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *mixture[:2])]
    y = execute(leaves[0], Mixture(leaves[1], leaves[2], None), geometry, strategy)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=DEVICE).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in SHAPES])
def test_equals_the_reference_in_value_and_gradient(name: str) -> None:
    x, mixture, geometry = make(name)
    assert strategies["triton"].supports(mixture, geometry) is None
    mine = run("triton", x, mixture, geometry, torch.float32)
    assert mine[0].is_contiguous(memory_format=torch.channels_last)
    for result, expected in zip(mine, run("reference", x, mixture, geometry, torch.float64), strict=True):
        assert result.shape == expected.shape
        assert distance(result, expected) < 2e-6


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("uneven", torch.bfloat16),
        pytest.param("plain", torch.float16, marks=SLOW),
    ],
)
def test_half_precision_rounds_once(name: str, dtype: torch.dtype) -> None:
    x, mixture, geometry = make(name, dtype)
    mine = run("triton", x, mixture, geometry, dtype)
    for result, expected in zip(mine, run("reference", x, mixture, geometry, torch.float64), strict=True):
        assert result.dtype == dtype
        assert distance(result, expected) < 3 * torch.finfo(dtype).eps


def test_any_memory_format_and_mixed_dtypes_are_served() -> None:
    x, mixture, geometry = make("plain")
    y = execute(x, mixture, geometry, "triton")
    torch.testing.assert_close(execute(x.contiguous(), mixture, geometry, "triton"), y)
    wide = torch.cat([x, x], dim=1)
    torch.testing.assert_close(execute(wide[:, : x.shape[1]], mixture, geometry, "triton"), y)
    low = execute(x.bfloat16(), mixture, geometry, "triton")
    assert low.dtype == torch.bfloat16
    assert distance(low, y.double()) < 0.03


@pytest.mark.parametrize("spoil", [0, pytest.param(1, marks=SLOW)])
def test_a_non_finite_example_spoils_no_other(spoil: int) -> None:
    x, mixture, geometry = make("plain")
    y = execute(x, mixture, geometry, "triton")
    (x, mixture.coefficients)[spoil][1] = math.nan
    spoiled = execute(x, mixture, geometry, "triton")
    assert spoiled[1].isnan().all()
    others = [b for b in range(len(y)) if b != 1]
    torch.testing.assert_close(spoiled[others], y[others], rtol=0, atol=0)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    x, mixture, geometry = make("plain")
    layout = (geometry.stride, geometry.padding, geometry.dilation)
    gradient = torch.ones_like(depthwise(x, *mixture[:2], *layout))
    full = depthwise_backward(gradient, x, *mixture[:2], *layout, [True] * 3)
    for i in range(3):
        mask = [j == i for j in range(3)]
        part = depthwise_backward(gradient, x, *mixture[:2], *layout, mask)
        torch.testing.assert_close(part[i], full[i])
        assert [g.numel() > 0 for g in part] == mask


def test_the_dtype_is_checked() -> None:
    x, mixture, geometry = make("plain")
    with pytest.raises(condconv.ArgumentError, match="x=torch.float64 must be f32, bf16 or f16"):
        execute(x.double(), mixture, geometry, "triton")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, in its check
@pytest.mark.slow
def test_opcheck() -> None:
    x, (coefficients, experts, _), geometry = make("plain")
    leaves = [t.clone().requires_grad_() for t in (x, coefficients, experts)]
    torch.library.opcheck(depthwise, (*leaves, geometry.stride, geometry.padding, geometry.dilation))


def test_shapes_and_strides_are_known_without_computing() -> None:
    x, mixture, geometry = make("uneven")
    y = execute(x, mixture, geometry, "triton")
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t.requires_grad_()) for t in (x, *mixture[:2])]
        fake = execute(fakes[0], Mixture(fakes[1], fakes[2], None), geometry, "triton")
        gradients = torch.autograd.grad(fake.sum(), fakes)
    assert (fake.shape, fake.stride(), fake.dtype) == (y.shape, y.stride(), y.dtype)
    assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in (x, *mixture[:2])]


def test_autocast_rounds_the_input_and_leaves_the_experts() -> None:
    layer = condconv.CondConv2d(4, 4, 3, padding=1, groups=4, num_experts=3, strategy="triton").to(DEVICE)
    x = torch.randn(2, 4, 4, 4, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16 and distance(low.detach(), layer(x).detach().double()) < 0.03


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # advice of torch's compiler on a GPU that has them
@pytest.mark.slow
def test_compiled_layers_train() -> None:
    layer = condconv.CondConv2d(4, 4, 3, padding=1, groups=4, num_experts=3, strategy="triton").to(DEVICE)
    x = torch.randn(2, 4, 4, 4, device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager" if INTERPRETED else "inductor")
    gradients = []
    for call in (layer, compiled):
        layer.zero_grad()
        y = call(x)
        y.square().sum().backward()
        gradients.append([y.detach(), *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_declared_count_is_the_dispatched_one() -> None:
    x, mixture, geometry = make("uneven")
    recorder = Recorder(torch.nn.Module())
    with recorder, DispatchCount(recorder) as dispatched:
        execute(x, mixture, geometry, "triton")
    assert dispatched.macs[""] == sum(executed_macs("triton", x.shape, mixture, geometry)) > 0


def test_transforms_of_torch_func_take_another_strategy() -> None:
    layer = condconv.CondConv2d(4, 4, 3, padding=1, groups=4, num_experts=3, strategy="triton").to(DEVICE)
    x = torch.randn(2, 4, 4, 4, device=DEVICE)
    with pytest.raises(condconv.StrategyError, match=r"strategy='triton' cannot serve it: .*torch\.func.*'auto'"):
        torch.func.vmap(layer)(x)
    with condconv.use_strategy("auto"):
        y = torch.func.vmap(layer)(x)
    torch.testing.assert_close(y, layer(x))
