"""Feeds the native operators with shapes that hypothesis makes up, and compares what they compute with plain torch.

`scripts/sanitize.sh` runs it with a build that has sanitizers; a finding of theirs ends the process. Covered are

* `conv2d`, `conv2d_backward` with and without the gradient of x, `conv2d_packed` with every storage, with and without
  bias, shift and threshold, and `pooled_linear`;
* dense, grouped and depthwise kernels of any size, stride, padding and dilation, beyond the sizes of all blocks;
* f32 and bf16 images of no to 20 examples, in every layout, with gaps and expanded; f32 and bf16 coefficients;
* three threads, and one whose memory is allocated anew for each call, so that none is larger than it need be;
* arguments that do not fit; in the end, those calls with which `tests/reliability/native.py` attacks the operators.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import condconv
from condconv.execution import native
from condconv.packing import STORAGES, pack, unpack
from tests.reliability import native as attacks
from tests.reliability.counts import note

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Case:
    """The arguments of an operator but for the experts' storage."""

    x: Tensor
    coefficients: Tensor
    experts: Tensor
    geometry: tuple[list[int], list[int], list[int], int]

    def expected(self, experts: Tensor, bias: Tensor | None = None, threshold: float = 0.0) -> Tensor:
        """What the operators must compute, one example after the other, in f64."""
        used = self.coefficients.double()
        if threshold:
            used = used.masked_fill(used.abs() <= threshold, 0.0)
        stride, padding, dilation, groups = self.geometry
        outputs = []
        for x, alpha in zip(self.x.double(), used, strict=True):
            kernel = torch.einsum("n,noihw->oihw", alpha, experts.double())
            mixed = None if bias is None else alpha @ bias.double()
            outputs.append(F.conv2d(x.unsqueeze(0), kernel, mixed, stride, padding, dilation, groups))
        return torch.cat(outputs) if outputs else F.conv2d(self.x.double(), experts[0].double(), None, *self.geometry)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Odd channels, empty batches, every geometry that fits, inputs with gaps and in any layout."""
    kind = draw(st.sampled_from(["dense", "dense", "grouped", "depthwise", "sliding"]))
    large = draw(st.sampled_from(["none", "none", "depth", "columns", "batch", "experts", "map"]))
    groups = {"dense": 1, "grouped": draw(st.integers(2, 4))}.get(kind, draw(st.integers(2, 70)))
    depth, columns = draw(st.integers(1, 70)), draw(st.integers(1, 40))
    depth += draw(st.integers(100, 600)) if large == "depth" else 0
    columns += draw(st.integers(100, 230)) if large == "columns" else 0
    if kind in ("depthwise", "sliding"):
        depth = columns = 1

    def pair(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)), draw(st.integers(low, high))]

    kernel, stride, padding, dilation = pair(1, 5), pair(1, 3), pair(0, 3), pair(1, 2)
    if kind == "sliding":  # depthwise, with the channels and the rows for which there are kernels of their own
        groups, kernel[1], dilation[1] = draw(st.integers(32, 100)), draw(st.sampled_from([3, 5])), 1
    spare = pair(0, 30 if large == "map" else 8)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [low + more for low, more in zip(least, spare, strict=True)]
    batch, experts = draw(st.integers(0, 20 if large == "batch" else 5)), draw(st.integers(1, 9))
    experts += 10 if large == "experts" else 0
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    x = torch.randn(batch, groups * depth, *size).to(dtype)
    layout: Callable[[Tensor], Tensor] = draw(st.sampled_from([_contiguous, _channels_last, _with_gaps, _expanded]))
    coefficients = torch.randn(batch, experts) * (torch.rand(batch, experts) > 0.3)
    bank = torch.randn(experts, groups * columns, depth, *kernel)
    return Case(
        layout(x), coefficients.to(draw(st.sampled_from(list(TOLERANCE)))), bank, (stride, padding, dilation, groups)
    )


def _contiguous(x: Tensor) -> Tensor:
    return x


def _channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def _with_gaps(x: Tensor) -> Tensor:
    return F.pad(x, (1, 2, 3, 1))[:, :, 3 : 3 + x.shape[2], 1 : 1 + x.shape[3]]


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def close(got: Tensor, expected: Tensor) -> None:
    """Compare relative to the largest value, for single ones may cancel to 0."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if expected.numel():
        error = float((got.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1e-3))
        assert error <= TOLERANCE[got.dtype], error


def check_forward_and_backward(case: Case) -> None:
    """`conv2d`, and `conv2d_backward` against the gradients of plain torch."""
    leaves = [t.clone().double().requires_grad_() for t in (case.x, case.coefficients, case.experts)]
    x, coefficients, experts = leaves
    expected = Case(x, coefficients, experts, case.geometry).expected(experts)
    y = run(torch.ops.condconv.conv2d, case.x, case.coefficients, case.experts, *case.geometry)
    close(y, expected.detach())
    grad = torch.randn(expected.shape).to(case.x.dtype)
    expected.backward(grad.double())
    for needs_input in (True, False):
        arguments = (grad, case.x, case.coefficients, case.experts, *case.geometry, needs_input)
        for got, leaf in zip(run(torch.ops.condconv.conv2d_backward, *arguments), leaves, strict=True):
            if case.x.shape[0] and (needs_input or leaf is not leaves[0]):
                assert leaf.grad is not None
                close(got, leaf.grad)


def check_packed(case: Case, storage: str, with_bias: bool, threshold: float) -> None:
    """`conv2d_packed` against what the packed experts unpack to."""
    groups, shape = case.geometry[3], case.experts.shape[1:]
    packed, scale = pack(case.experts, groups, storage)
    bias, shift = (torch.randn(case.experts.shape[:2]), torch.randn(shape[0])) if with_bias else (None, None)
    arguments = (packed, scale, bias, shift, list(shape), *case.geometry, threshold)
    y = run(torch.ops.condconv.conv2d_packed, case.x, case.coefficients, *arguments)
    expected = case.expected(unpack(packed, scale, shape, groups), bias, threshold)
    close(y, expected if shift is None else expected + shift.reshape(-1, 1, 1))


def check_router(case: Case) -> None:
    """`pooled_linear` of the same image."""
    x = case.x.float()
    weight, bias = torch.randn(case.experts.shape[0], x.shape[1]), torch.randn(case.experts.shape[0])
    close(run(torch.ops.condconv.pooled_linear, x, weight, bias), F.linear(x.mean((2, 3)), weight, bias))
    logits = F.linear(x.mean((2, 3)), weight, bias)
    close(run(torch.ops.condconv.pooled_linear, x, weight, bias, 1), logits.sigmoid())
    close(run(torch.ops.condconv.pooled_linear, x, weight, bias, 2, torch.tensor(2.0)), (logits / 2).softmax(1))
    for wrong in (
        (x, weight.bfloat16(), bias),
        (x, weight, bias.double()),
        (x, weight[:, 1:], bias),
        (x, weight, bias[1:]),
    ):
        refused(torch.ops.condconv.pooled_linear, *wrong)


def check_refusals(case: Case) -> None:
    """Arguments that do not fit are refused before memory is touched."""
    stride, padding, dilation, groups = case.geometry
    experts, x = case.experts, case.x
    wrong: list[tuple[Any, ...]] = [
        (x, case.coefficients, experts[:, :0], *case.geometry),
        (x[:, :0], case.coefficients, experts[:, :, :0], *case.geometry),
        (x[:, :, :0], case.coefficients, experts[:, :, :1], stride, [3, 3], dilation, groups),
        (x, case.coefficients[:, :0], experts, *case.geometry),
        (x, case.coefficients, experts[:, :, :, :0], *case.geometry),
        (x[:, :-1], case.coefficients, experts, *case.geometry),
        (x, case.coefficients, experts, stride, padding, dilation, groups + 1),
        (x, case.coefficients, experts, [0, 1], padding, dilation, groups),
        (x, case.coefficients, experts, stride, [-1, 0], dilation, groups),
        (x[:, :, :0, :0], case.coefficients, experts, stride, [0, 0], dilation, groups),
    ]
    for arguments in wrong:
        refused(torch.ops.condconv.conv2d, *arguments)
    packed, scale = pack(experts, groups, "int8")
    assert scale is not None
    for numbers, scales in ((packed[1:], scale), (packed, None), (packed, scale[:, 1:]), (packed.float(), scale)):
        parts = (numbers, scales, None, None, list(experts.shape[1:]), *case.geometry, 0.0)
        refused(torch.ops.condconv.conv2d_packed, x, case.coefficients, *parts)


def refused(operator: Callable[..., Any], *arguments: Any) -> None:
    """Expect an error."""
    with contextlib.suppress(RuntimeError):
        operator(*arguments)
        raise AssertionError(f"accepted: {[getattr(a, 'shape', a) for a in arguments]}")


def run(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Run an operator with three threads, and in a new thread that has no memory from earlier calls."""
    results = []
    torch.set_num_threads(3)
    operator(*arguments)
    torch.set_num_threads(1)
    thread = threading.Thread(target=lambda: results.append(operator(*arguments)))
    thread.start()
    thread.join()
    return results[0]


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--under", type=Path, required=True, help="folder from which condconv must be imported")
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--calls", type=int, default=2000)
    given_arguments = parser.parse_args()
    home = Path(condconv.__file__).resolve()
    assert given_arguments.under.resolve() in home.parents, f"{home} is not the sanitized build"
    assert native.available(), native.load_error()
    print(f"instruction set {native.instruction_set()}, {given_arguments.examples} shapes")
    relaxed = settings(max_examples=given_arguments.examples, deadline=None, suppress_health_check=list(HealthCheck))

    @relaxed
    @given(cases(), st.integers(0, 2**31), st.sampled_from(list(STORAGES)), st.booleans(), st.sampled_from([0.0, 0.5]))
    def check(case: Case, seed: int, storage: str, with_bias: bool, threshold: float) -> None:
        torch.manual_seed(seed)
        check_forward_and_backward(case)
        check_packed(case, storage, with_bias, threshold)
        check_router(case)
        check_refusals(case)

    check()
    for operator in attacks.OPERATORS:
        problems = attacks.attack(operator, range(given_arguments.calls))
        note("sanitized calls", f"{operator}, part {native.instruction_set()}", given_arguments.calls, len(problems))
        assert not problems, "\n".join(problems)
    print("nothing found")


if __name__ == "__main__":
    main()
