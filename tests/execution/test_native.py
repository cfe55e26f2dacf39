"""The native operators compute what is defined, are registered as torch wants it, and refuse what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import condconv
from condconv.routers.gates import Gate, SigmoidGate, SoftmaxGate
from tests.execution.native_cases import (
    LAYOUTS,
    NEEDS_NATIVE,
    Case,
    Problem,
    cases,
    definition,
    difference,
    direction_of,
)

pytestmark = NEEDS_NATIVE

SMALL = {
    "dense": Case(3, 4, 5, 20, (6, 7), kernel=3, stride=(1, 2), padding=(1, 0)),
    "pointwise": Case(2, 3, 33, 18, (4, 5)),
    "grouped": Case(2, 3, 6, 8, (5, 5), kernel=(3, 1), dilation=(2, 1), groups=2),
    "depthwise": Case(2, 3, 20, 20, (7, 6), kernel=3, stride=2, padding=1, groups=20),
}


def check_values_and_gradients(case: Case, layout: str, seed: int) -> None:
    """Forward and backward in f32, against f64."""
    torch.manual_seed(seed)
    shapes = (
        (case.batch, case.in_channels, *case.size),
        (case.batch, case.experts),
        (case.experts, *case.kernel_shape()),
    )
    x, coefficients, experts = (torch.randn(shape) for shape in shapes)
    inputs = [LAYOUTS[layout](x), coefficients, experts]
    mine, exact = ([t.detach().to(dtype).requires_grad_() for t in inputs] for dtype in (torch.float32, torch.float64))
    y = torch.ops.condconv.conv2d(*mine, *case.geometry())
    expected = definition(*exact, case.geometry())  # type: ignore[call-arg]
    assert difference(y, expected) < 1e-5
    if case.batch:
        direction = torch.randn(y.shape)
        y.backward(direction)
        expected.backward(direction.double())
        for a, b in zip(mine, exact, strict=True):
            assert a.grad is not None and b.grad is not None
            assert difference(a.grad, b.grad) < 1e-5


def check_all_geometries(examples: int) -> None:
    @settings(deadline=None, max_examples=examples, derandomize=True)
    @given(cases(), st.sampled_from(sorted(LAYOUTS)), st.integers(0, 2**31))
    def check(case: Case, layout: str, seed: int) -> None:
        check_values_and_gradients(case, layout, seed)

    check()


def test_all_geometries_and_layouts() -> None:
    check_all_geometries(40)


BEYOND_ALL_BLOCKS = [
    Case(2, 3, 170, 210, (7, 7)),
    Case(7, 5, 120, 420, (5, 6)),
    Case(2, 9, 60, 250, (5, 4), kernel=3, groups=2),
    Case(18, 9, 50, 20, (3, 2)),
    Case(2, 2, 20, 17, (19, 18), kernel=3, padding=1),
    Case(1, 17, 70, 70, (9, 17), kernel=5, padding=2, groups=70),
]


@pytest.mark.parametrize("case", BEYOND_ALL_BLOCKS, ids=str)
def test_what_does_not_fit_into_one_block(case: Case) -> None:
    check_values_and_gradients(case, "channels_last", 0)


@pytest.mark.parametrize("kind", ["dense", "depthwise"])
def test_second_derivatives(kind: str) -> None:
    case = SMALL[kind]
    shapes = (
        (case.batch, case.in_channels, *case.size),
        (case.batch, case.experts),
        (case.experts, *case.kernel_shape()),
    )
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]

    def second(convolve: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(convolve(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), leaves)

    mine = [t.float().requires_grad_() for t in inputs]
    got = second(lambda *t: torch.ops.condconv.conv2d(*t, *case.geometry()), mine)
    expected = second(partial(definition, geometry=case.geometry()), [t.requires_grad_() for t in inputs])
    for a, b in zip(got, expected, strict=True):
        assert difference(a, b) < 1e-5
    frozen = mine[0].detach()
    got = second(lambda *t: torch.ops.condconv.conv2d(frozen, *t, *case.geometry()), mine[1:])
    assert all(bool(g.any()) for g in got)


# opcheck reads the gradients of expanded inputs.
REGISTERED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@REGISTERED
@pytest.mark.parametrize("kind", ["dense", "depthwise"])
def test_conv2d_is_registered(kind: str) -> None:
    problem = Problem(SMALL[kind], "f32", torch.float32)
    tensors = [t.clone().requires_grad_() for t in (problem.x, problem.coefficients, problem.experts)]
    torch.library.opcheck(torch.ops.condconv.conv2d.default, (*tensors, *problem.case.geometry()))


@REGISTERED
@pytest.mark.parametrize(("kind", "needs_input"), [("dense", True), ("depthwise", False)])
def test_conv2d_backward_is_registered(kind: str, needs_input: bool) -> None:
    problem = Problem(SMALL[kind], "f32", torch.float32)
    turned = problem.coefficients.T.contiguous().T  # The gradient's strides are not those.
    tensors = (direction_of(problem), problem.x, turned, problem.experts)
    torch.library.opcheck(torch.ops.condconv.conv2d_backward.default, (*tensors, *problem.case.geometry(), needs_input))


@REGISTERED
@pytest.mark.parametrize(
    ("kind", "storage", "dtype"),
    [("dense", "f32", torch.float32), ("pointwise", "bf16", torch.bfloat16), ("depthwise", "int8", torch.float32)],
)
def test_conv2d_packed_is_registered(kind: str, storage: str, dtype: torch.dtype) -> None:
    problem = Problem(SMALL[kind], storage, dtype)
    shift = torch.randn(problem.case.out_channels)
    weights = (problem.packed, problem.scale, problem.bias, shift, problem.case.kernel_shape())
    arguments = (problem.x, problem.coefficients, *weights, *problem.case.geometry(), 0.0)
    torch.library.opcheck(torch.ops.condconv.conv2d_packed.default, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pooled_linear(layout: str) -> None:
    x, weight, bias = LAYOUTS[layout](torch.randn(3, 21, 5, 4)), torch.randn(6, 21), torch.randn(6)
    assert difference(torch.ops.condconv.pooled_linear(x, weight, bias), F.linear(x.mean((2, 3)), weight, bias)) < 1e-5


@pytest.mark.parametrize("gate", [SigmoidGate(), SoftmaxGate(0.7)])
def test_pooled_linear_gates_along(gate: Gate) -> None:
    x, weight, bias = 9 * torch.randn(3, 21, 5, 4), torch.randn(6, 21), torch.randn(6)
    coefficients = torch.ops.condconv.pooled_linear(x, weight, bias, gate.fused, gate.divisor)
    assert difference(coefficients, gate(F.linear(x.mean((2, 3)), weight, bias))) < 1e-6
    for value in (torch.nan, torch.inf):
        bias[2] = value
        coefficients = torch.ops.condconv.pooled_linear(x, weight, bias, gate.fused, gate.divisor)
        torch.testing.assert_close(coefficients, gate(F.linear(x.mean((2, 3)), weight, bias)), equal_nan=True)


def test_pooled_linear_is_registered() -> None:
    arguments = (torch.randn(3, 21, 5, 4), torch.randn(6, 21), torch.randn(6))
    for gate in ((), (1,), (2, torch.tensor(3.0))):
        torch.library.opcheck(torch.ops.condconv.pooled_linear.default, (*arguments, *gate))


PROBLEM = Problem(SMALL["grouped"], "int8", torch.float32)
ARGUMENTS: dict[str, Any] = {
    "x": PROBLEM.x,
    "coefficients": PROBLEM.coefficients,
    "packed": PROBLEM.packed,
    "scale": PROBLEM.scale,
    "bias": PROBLEM.bias,
    "shift": None,
    "kernel_shape": PROBLEM.case.kernel_shape(),
    **dict(zip(("stride", "padding", "dilation", "groups"), PROBLEM.case.geometry(), strict=True)),
    "threshold": 0.0,
}
MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.randn(2, 6, 5)}, r"x must be \(B, I, H, W\), it has 3 dimensions"),
    ({"x": torch.randn(2, 7, 5, 5)}, "x has 7 channels; kernels .* with I/g = 3, O = 8 and 2 groups do not fit"),
    ({"x": torch.randn(2, 6, 0, 5), "padding": [9, 9]}, "sizes, stride and dilation must be positive"),
    ({"x": torch.randn(2, 6, 4, 5)}, "the input is smaller than the kernel"),
    ({"coefficients": torch.rand(3, 3)}, r"coefficients must be \(B, n\) with the batch of x"),
    ({"coefficients": torch.rand(3)}, r"coefficients must be \(B, n\) with the batch of x"),
    ({"coefficients": torch.rand(2, 0)}, "sizes, stride and dilation must be positive"),
    ({"coefficients": torch.rand(2, 4)}, "the packed experts have 864 elements, not those of 4 kernels of that shape"),
    ({"packed": PROBLEM.packed[:-1]}, "the packed experts have 863 elements, not those of 3 kernels"),
    ({"packed": PROBLEM.packed.double()}, "packed experts are float32, bfloat16 or int8"),
    ({"packed": PROBLEM.packed.float()}, "int8 experts have a scale, others none"),
    ({"scale": None}, "int8 experts have a scale, others none"),
    ({"scale": torch.rand(3, 16)}, r"scale must be \(n, blocks of 16 columns\)"),
    ({"bias": torch.rand(3, 7)}, r"bias must be \(n, O\)"),
    ({"shift": torch.rand(7)}, r"shift must be \(O,\)"),
    ({"kernel_shape": [8, 3, 3]}, "a kernel has 4 sizes; stride, padding and dilation have 2"),
    ({"kernel_shape": [8, 3, 0, 1]}, "sizes, stride and dilation must be positive"),
    ({"kernel_shape": [0, 3, 3, 1]}, "sizes, stride and dilation must be positive"),
    ({"stride": [1]}, "a kernel has 4 sizes; stride, padding and dilation have 2"),
    ({"stride": [1, 0]}, "stride and dilation must be positive"),
    ({"dilation": [0, 1]}, "stride and dilation must be positive"),
    ({"padding": [0, -1]}, "padding must not be negative"),
    ({"groups": 3}, "3 groups do not fit"),
    ({"groups": 0}, "0 groups do not fit"),
]


@pytest.mark.parametrize(("changed", "message"), MALFORMED, ids=["-".join(changed) for changed, _ in MALFORMED])
def test_malformed_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"condconv: .*{message}"):
        torch.ops.condconv.conv2d_packed(*{**ARGUMENTS, **changed}.values())


def test_malformed_arguments_of_the_others_are_named() -> None:
    problem = Problem(SMALL["dense"], "f32", torch.float32)
    x, coefficients, experts, geometry = problem.x, problem.coefficients, problem.experts, problem.case.geometry()
    with pytest.raises(RuntimeError, match=r"condconv: experts must be \(n, O, I/g, kh, kw\)"):
        torch.ops.condconv.conv2d(x, coefficients, experts[0], *geometry)
    with pytest.raises(RuntimeError, match="condconv: 4 coefficients for 3 experts"):
        torch.ops.condconv.conv2d(x, coefficients, experts[:3], *geometry)
    with pytest.raises(RuntimeError, match="condconv: the gradient does not have the shape of the output"):
        torch.ops.condconv.conv2d_backward(x, x, coefficients, experts, *geometry, True)
    weight, bias = torch.randn(3, 5), torch.randn(3)
    for wrong in ((x.double(), weight, bias), (x, weight.bfloat16(), bias), (x, weight, bias.half())):
        with pytest.raises(RuntimeError, match="condconv::pooled_linear: x, weight and bias must be float32"):
            torch.ops.condconv.pooled_linear(*wrong)
    for wrong in ((x, weight[:, 1:], bias), (x, weight, bias[1:]), (x[0], weight, bias)):
        with pytest.raises(RuntimeError, match=r"x \(B, C, H, W\), weight \(n, C\) and bias \(n\) must fit"):
            torch.ops.condconv.pooled_linear(*wrong)
    with pytest.raises(RuntimeError, match=r"gate must be 0 \(none\), 1 \(sigmoid\) or 2 \(softmax\)"):
        torch.ops.condconv.pooled_linear(x, weight, bias, 3)
    with pytest.raises(RuntimeError, match="divisor must be one number"):
        torch.ops.condconv.pooled_linear(x, weight, bias, 2, torch.ones(2))


def test_a_layer_pinned_to_it_says_why_it_cannot_serve() -> None:
    layer = condconv.CondConv3d(2, 2, 1, strategy="native")
    with pytest.raises(
        condconv.StrategyError, match="strategy='native' cannot serve it: it needs a convolution of one"
    ):
        layer(torch.randn(1, 2, 3, 3, 3))
