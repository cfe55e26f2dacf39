"""Principal kernels: exact where routing leaves something unused, nearest where it does not; four bits in a file."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import condconv
from condconv.banks import Packing
from condconv.banks.principal import principal_kernels
from condconv.lowered import kernels_of
from tests.contract.cases import MIXTURES

UNUSED = {
    "dead": lambda alpha, experts: (alpha * torch.tensor([1.0, 0, 1, 0]), experts, 2),
    "equal": lambda alpha, experts: (alpha, experts[[0, 0, 1, 1]], 2),
    "together": lambda alpha, experts: (alpha[:, [0, 1, 1, 1]], experts, 2),
    "constant": lambda alpha, experts: (alpha[:1].expand(20, 4), experts, 1),
    "all": lambda alpha, experts: (alpha, experts, 4),
}


def layer(**how: Any) -> Any:
    torch.manual_seed(0)
    return condconv.CondConv2d(6, 10, 3, num_experts=4, **how).eval()


def kernels(bank: Any, alpha: Tensor) -> Tensor:
    return kernels_of(bank(alpha.float()), torch.float32)


@pytest.mark.parametrize("what", UNUSED)
def test_what_routing_leaves_unused_costs_nothing(what: str) -> None:
    made = layer()
    alpha, experts, m = UNUSED[what](torch.rand(20, 4), made.weight.detach().clone())
    with torch.no_grad():
        made.weight.copy_(experts)
        made.bias.zero_()
    packed = made.bank.pack(Packing("f32", kernels=m, coefficients=alpha), None)
    assert packed.num_kernels == m and packed.num_experts == 4
    torch.testing.assert_close(kernels(packed, alpha), kernels(made.bank, alpha), atol=2e-6, rtol=1e-5)
    x = torch.randn(20, 6, 5, 5)
    expected = made(x, alpha.float())
    made.bank = packed
    torch.testing.assert_close(made(x, alpha.float()), expected, atol=1e-5, rtol=1e-5)


def test_no_other_kernels_are_nearer() -> None:
    alpha, experts = torch.rand(30, 4).double(), torch.randn(4, 5, 7).double()
    wanted = alpha @ experts.flatten(1)
    for m in (1, 2, 3):
        projection, made, _ = principal_kernels(experts, None, alpha, m)
        error = (alpha @ projection @ made.flatten(1) - wanted).square().sum()
        least = torch.linalg.svdvals(wanted)[m:].square().sum()  # of any matrix of rank m
        torch.testing.assert_close(error, least)
        torch.testing.assert_close((alpha @ projection).square().mean(dim=0), torch.ones(m).double())


def test_biases_are_part_of_the_kernels() -> None:
    made, alpha = layer(), torch.rand(20, 4)
    packed = made.bank.pack(Packing("f32", kernels=4, coefficients=alpha), None)
    torch.testing.assert_close(packed(alpha).bias, made.bank(alpha).bias)
    weight, bias, _ = packed.unpacked()
    torch.testing.assert_close(weight, made.weight.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bias, made.bias.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [{"groups": 1}, {"groups": 2}, {"groups": 6}])
def test_four_bits_in_a_file(kind: dict[str, int]) -> None:
    torch.manual_seed(0)
    made = condconv.CondConv2d(6, 18, 3, num_experts=3, **kind)
    alpha = torch.rand(20, 3)
    packed = made.bank.pack(Packing("int4", kernels=3, coefficients=alpha), None)
    wide = made.bank.pack(Packing("int8", kernels=3, coefficients=alpha), None)
    state, other = packed.state_dict(), wide.state_dict()
    elements = made.weight[0].numel()
    assert state["packed"].numel() == elements and state["nibbles"].numel() == elements  # two others, half a byte each
    assert state["nibbles"].dtype == torch.uint8 and int(packed.packed.abs().max()) == 127
    empty = made.bank.pack(Packing("int4", kernels=3), None)
    assert not empty.packed.any()
    empty.load_state_dict(state)
    assert torch.equal(empty.packed, packed.packed) and torch.equal(kernels(empty, alpha), kernels(packed, alpha))
    errors = [float((kernels(bank, alpha) - kernels(made.bank, alpha)).norm()) for bank in (packed, wide)]
    assert 3 * errors[1] < errors[0] < 0.1 * float(kernels(made.bank, alpha).norm())
    assert torch.equal(copy.deepcopy(packed).packed, packed.packed)
    for bank, given in ((wide, state), (packed, other)):
        with pytest.raises(condconv.CheckpointError, match="the file holds int[48] experts, the network int[48] ones"):
            copy.deepcopy(bank).load_state_dict(given)


@pytest.mark.parametrize("variant", MIXTURES)
def test_inference_forms_with_factors_and_norms(variant: str) -> None:
    torch.manual_seed(0)
    static = torch.nn.Conv2d(4, 6, 3)
    conditional = condconv.convert(
        torch.nn.Sequential(static), variant, targets="0", num_experts=2, init="fresh"
    ).eval()[0]
    alpha = conditional.router(torch.randn(9, 4, 6, 6)).detach() + 0.1 * torch.rand(9, conditional.num_coefficients)
    norm = condconv.banks.Affine(torch.rand(6).double() + 0.5, torch.randn(6).double())
    plain = conditional.bank.pack(Packing("f32"), norm)
    packed = conditional.bank.pack(Packing("f32", kernels=2, coefficients=alpha), norm)
    torch.testing.assert_close(kernels(packed, alpha), kernels(plain, alpha), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packed(alpha).bias, plain(alpha).bias, atol=1e-5, rtol=1e-4)


def test_experts_that_are_not_finite_are_refused() -> None:
    made = layer()
    with torch.no_grad():
        made.weight[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(condconv.ConversionError, match="NaN or infinite, which fewer kernels would hide"):
        made.bank.pack(Packing("f32", kernels=2, coefficients=torch.rand(5, 4)), None)
