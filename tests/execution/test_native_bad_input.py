"""What is unusual, spoiled or left out: types and layouts, values that are not finite, experts, threads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import condconv
from condconv.banks import PackedBank
from condconv.execution import AUTO, choose
from condconv.packing import STORAGES
from tests.execution.native_cases import LAYOUTS, NEEDS_NATIVE, Case, Problem, definition, difference, direction_of

pytestmark = NEEDS_NATIVE

CASES = {
    "dense": Case(5, 4, 40, 24, (6, 7), kernel=3, padding=1),
    "pointwise": Case(5, 4, 70, 33, (6, 7)),
    "depthwise": Case(5, 4, 36, 36, (6, 7), kernel=3, padding=1, groups=36),
}
KINDS = pytest.mark.parametrize("kind", CASES)
STORAGE = pytest.mark.parametrize("storage", STORAGES)


def train(problem: Problem, direction: Tensor) -> list[Tensor]:
    """Output and gradients of the operator for training."""
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.coefficients, problem.experts)]
    y = torch.ops.condconv.conv2d(*leaves, *problem.case.geometry())
    return [y.detach(), *torch.autograd.grad(y, leaves, direction)]


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_types_take_a_torch_strategy(dtype: torch.dtype, packed: bool) -> None:
    layer = condconv.CondConv2d(8, 12, 3, num_experts=3).to(dtype).eval().requires_grad_(False)
    if packed:
        layer.bank = PackedBank(layer.weight, layer.bias, None, 1, "f32")
    x = torch.randn(2, 8, 6, 6, dtype=dtype)
    y = layer(x)
    assert condconv.last_strategy(layer) not in (None, "native", "reference")
    with condconv.use_strategy("reference"):
        assert difference(y, layer(x)) < (1e-12 if dtype == torch.float64 else 2e-3)
    assert y.dtype == dtype


@KINDS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_images_and_coefficients(kind: str, layout: str) -> None:
    problem = Problem(CASES[kind], "bf16", torch.float32)
    problem.x = LAYOUTS[layout](problem.x)
    rows = problem.coefficients
    for coefficients in (rows[:1].expand(rows.shape), rows.T.contiguous().T, rows.repeat(1, 2)[:, ::2]):
        problem.coefficients = coefficients
        assert difference(problem.run(), problem.expected()) < 1e-5
        y, *gradients = train(problem, direction_of(problem))
        problem.x, problem.coefficients = problem.x.contiguous(), coefficients.contiguous()
        again = train(problem, direction_of(problem))
        assert torch.equal(y, again[0]) and [g.shape for g in gradients] == [g.shape for g in again[1:]]


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_an_image_beyond_what_the_operator_counts_in(packed: bool) -> None:
    layer = condconv.CondConv2d(1, 2, 3, num_experts=2, strategy="native").eval().requires_grad_(False)
    if packed:
        layer = condconv.optimize_for_inference(layer)
        layer.strategy = "native"
    huge = torch.zeros(1, 1, 1, 1).expand(1, 1, 2**15, 2**14)
    with pytest.raises(condconv.StrategyError, match=r"native': .* 3 x 3 times 32766 x 16382, must be below 2\^31"):
        layer(huge, torch.ones(1, 2))


def test_beyond_what_the_operator_counts_in_auto_takes_another_strategy() -> None:
    layer = condconv.optimize_for_inference(condconv.CondConv2d(1, 2, 3, num_experts=2).eval())
    packed, pixel = layer.bank(torch.ones(1, 2)), torch.zeros(1, 1, 1, 1)
    rows = 2**31 // (9 * 1000)  # of 1000 outputs, each of them the sum of 9 products
    last, beyond = (pixel.expand(1, 1, rows + more, 1002) for more in (2, 3))
    assert choose(last, packed, layer.geometry, AUTO, "layer") == "native"
    assert choose(beyond, packed, layer.geometry, AUTO, "layer") != "native"
    assert choose(pixel.expand(1, 1, 2**16, 2**15), packed, layer.geometry, AUTO, "layer") != "native"


def test_a_number_of_experts_beyond_64_bits_is_not_that_of_a_bank() -> None:
    problem = Problem(CASES["dense"]._replace(batch=0), "bf16")
    problem.coefficients = torch.empty(0, problem.case.experts + 2**60)  # times 16 columns it would be 2^64 more
    with pytest.raises(RuntimeError, match="the packed experts have"):
        problem.run()


@KINDS
@STORAGE
def test_a_batch_of_none(kind: str, storage: str) -> None:
    problem = Problem(CASES[kind]._replace(batch=0), storage, torch.float32)
    y = problem.run()
    assert y.shape == problem.expected().shape and y.shape[0] == 0
    _, dx, dc, dw = train(problem, direction_of(problem))
    assert dx.shape == problem.x.shape and dc.shape == problem.coefficients.shape and not dw.any()


@KINDS
@STORAGE
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_example(kind: str, storage: str, value: float) -> None:
    problem = Problem(CASES[kind], storage, torch.float32)
    direction = direction_of(problem)
    clean, trained = problem.run(), train(problem, direction)
    problem.x[0, 1, 2, 2] = value
    problem.coefficients[1, 0] = -value
    spoiled, retrained = problem.run(), train(problem, direction)
    for got, expected in ((spoiled, clean), *zip(retrained[:3], trained[:3], strict=True)):
        assert torch.equal(got[2:], expected[2:]) and bool(expected.isfinite().all())
    for y in (spoiled, retrained[0]):
        assert not y[0].isfinite().all() and not y[1].isfinite().any()


@KINDS
@STORAGE
@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_are_left_out(kind: str, storage: str, threshold: float, dtype: torch.dtype) -> None:
    problem = Problem(CASES[kind], storage, dtype)
    given = torch.rand(5, 4)
    given[0] = torch.tensor([0.0, -0.0, 0.9, -0.6])
    given[1] = threshold  # all are left out: the threshold itself is not above it
    given[2] = torch.tensor([-0.5, 0.5, 0.51, -0.51])
    problem.coefficients = given.masked_fill(given.abs() <= threshold, 0.0)
    expected = problem.expected()
    problem.coefficients = given
    y = problem.run(threshold)
    assert difference(y, expected) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert not y[1].any()


@KINDS
@pytest.mark.parametrize("storage", ["f32", "bf16"])
def test_an_expert_that_no_example_uses_may_be_spoiled(kind: str, storage: str) -> None:
    case = CASES[kind]
    problem, clean = Problem(case, storage, torch.float32), Problem(case, storage, torch.float32)
    clean.coefficients[:, 1] = problem.coefficients[:, 1] = 0.0
    experts = problem.experts.clone()
    experts[1] = math.nan
    problem.packed = condconv.packing.pack(experts, case.groups, storage)[0]
    assert torch.equal(problem.run(), clean.run())
    leaves = (problem.x, problem.coefficients, experts.float())
    y = torch.ops.condconv.conv2d(*leaves, *case.geometry())
    assert difference(y, definition(clean.x, clean.coefficients, clean.experts, case.geometry())) < 1e-5


@pytest.fixture
def threads() -> Iterator[None]:
    """Sets the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


MANY = {
    **CASES,
    "many columns": Case(3, 2, 20, 210, (5, 5)),
    "many examples": Case(19, 2, 20, 17, (4, 4), kernel=3, stride=2),
    "grouped": Case(2, 3, 24, 36, (8, 8), kernel=3, groups=3),
    "wide": Case(2, 3, 130, 130, (5, 5), kernel=3, padding=1, groups=130),
}


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_makes_no_difference(kind: str, dtype: torch.dtype, threads: None) -> None:
    problem = Problem(MANY[kind], "int8", dtype)
    direction = direction_of(problem)
    results: list[list[Tensor]] = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append([problem.run(), *train(problem, direction)])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0], strict=True))


def test_eight_callers_at_once(threads: None) -> None:
    torch.set_num_threads(2)
    problems = [Problem(case, "f32", torch.float32) for case in MANY.values()]
    problems += [Problem(case, "int8", torch.bfloat16) for case in MANY.values()]
    directions = [direction_of(problem) for problem in problems]

    def work(index: int) -> list[Any]:
        return [problems[index].run(), *train(problems[index], directions[index])]

    alone = [work(index) for index in range(len(problems))]
    with ThreadPoolExecutor(8) as pool:
        order = [(start + step) % len(problems) for start in range(8) for step in range(6)]
        for index, results in zip(order, pool.map(work, order), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(results, alone[index], strict=True))
