"""The native operator on bf16 input equals convolutions with kernels mixed in f64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from condconv.execution import native
from condconv.packing import STORAGES
from tests.execution.native_cases import NEEDS_NATIVE, Case, Problem

pytestmark = NEEDS_NATIVE

# Sizes that are no multiples of any block, and depths of more than one run of a bank.
CASES = [
    Case(1, 8, 32, 48, (7, 7)),
    Case(3, 1, 20, 30, (5, 6)),
    Case(6, 12, 600, 33, (7, 7)),
    Case(2, 4, 48, 200, (17, 20), stride=2),
    Case(2, 2, 515, 17, (1, 1)),
    Case(9, 3, 5, 7, (9, 8), kernel=3, stride=2, padding=1),
    Case(2, 9, 64, 70, (9, 9), kernel=3, padding=2, dilation=2),
    Case(3, 2, 181, 130, (5, 5), kernel=3, padding=1),
    Case(3, 8, 96, 96, (9, 9), kernel=3, padding=1, groups=3),
    Case(3, 11, 70, 70, (15, 13), kernel=5, stride=2, padding=2, groups=70),
    Case(5, 8, 40, 40, (14, 14), kernel=3, padding=1, groups=40),
    Case(0, 4, 16, 24, (4, 4), kernel=3, padding=1),
]


def assert_equal_up_to_rounding(y: Tensor, expected: Tensor) -> None:
    assert y.dtype == torch.bfloat16
    if y.numel() > 0:
        assert float((y.double() - expected).abs().max()) < 1e-2 * float(expected.abs().max())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(case: Case, storage: str) -> None:
    problem = Problem(case, storage)
    expected = problem.expected()
    assert_equal_up_to_rounding(problem.run(), expected)
    problem.x = problem.x.contiguous(memory_format=torch.channels_last)
    assert_equal_up_to_rounding(problem.run(), expected)


@pytest.mark.parametrize("storage", ["bf16", "int8"])
@pytest.mark.parametrize("case", [CASES[2], CASES[6], CASES[9]], ids=str)
def test_what_is_not_finite_stays_in_its_example(case: Case, storage: str) -> None:
    problem = Problem(case, storage)
    clean = problem.run()
    problem.x[0, 1, 2, 2] = torch.nan
    problem.coefficients[1, 0] = torch.inf
    spoiled = problem.run()
    assert not spoiled[0].isfinite().all() and not spoiled[1].isfinite().all()
    assert torch.equal(spoiled[2:], clean[2:])
    assert clean.isfinite().all()


def test_gradients_equal_those_of_f32() -> None:
    case = CASES[5]
    problem = Problem(case, "f32")
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        tensors = (problem.x.to(dtype), problem.coefficients.clone(), problem.experts.clone())
        leaves = [t.requires_grad_() for t in tensors]
        y = torch.ops.condconv.conv2d(*leaves, *case.geometry())
        gradients.append(torch.autograd.grad(y.float().square().sum(), leaves))
    for half, full in zip(*gradients, strict=True):
        assert float((half.float() - full).abs().max()) < 2e-2 * float(full.abs().max())


def test_amx_registers_are_left_to_others() -> None:
    """A thread's tile registers are configured by each library that uses them, oneDNN's convolutions too."""
    if native.instruction_set() != "amx":
        pytest.skip(f"this process uses {native.instruction_set()}, not AMX")
    problems = [Problem(case, "bf16") for case in (CASES[0], CASES[2], CASES[7])]
    x, weight = torch.randn(2, 32, 9, 9).bfloat16(), torch.randn(48, 32, 3, 3).bfloat16()
    alone = [problem.run() for problem in problems]
    static = conv2d(x, weight)

    def both(index: int) -> bool:
        same = torch.equal(problems[index].run(), alone[index])
        return same and torch.equal(conv2d(x, weight), static)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(both, [0, 1, 2] * 4))
