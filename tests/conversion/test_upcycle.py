"""Upcycling: exact at step 0, in both modes; then experts part."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import condconv
from condconv.banks.dense import RELATIVE_SCALE
from condconv.coefficients import Slices
from condconv.routers import PooledLinear, Router, SigmoidGate, SoftmaxGate, SqueezeExcite
from condconv.site import ConvSite
from tests.conversion.networks import check_conversion, make_telling
from tests.conversion.small import SIZE, Net

LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 5, 2, 2, bias=True), (4, 17)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1, dilation=2, groups=2), (4, 9, 8)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 9, 8)),
    "same": (nn.Conv2d(4, 6, 5, padding="same"), (4, 9, 8)),
    "conv3d": (nn.Conv3d(2, 4, 3, padding=1), (2, 5, 6, 7)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (4, 5, 6)),
    "linear": (nn.Linear(5, 7), (5,)),
    "tokens": (nn.Linear(5, 7, bias=False), (9, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("variant", ["condconv", "dynamic_convolution"])
@pytest.mark.parametrize("num_experts", [1, 2, 5, 8])
def test_every_kind_of_layer_is_exact(name: str, variant: str, num_experts: int) -> None:
    layer, size = LAYERS[name]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        static = copy.deepcopy(layer).to(dtype)
        x = torch.randn(3, *size, dtype=dtype)
        expected = static(x)
        made = condconv.convert(nn.Sequential(static), variant, targets=".*", num_experts=num_experts)
        assert (made(x) - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("share", ["block", None, "network", 2, 3])
@pytest.mark.parametrize("variant", ["condconv", "dynamic_convolution"])
def test_networks_are_exact_in_both_modes(variant: str, share: object) -> None:
    net = Net(channels=16).double()
    x = torch.randn(4, *SIZE, dtype=torch.float64)
    make_telling(net, (x,))
    check_conversion(net, (x,), tolerance=1e-12, variant=variant, input_size=SIZE, share=share, targets=".*")


@pytest.mark.parametrize(
    "gate", [SigmoidGate(), SoftmaxGate(1.0), SoftmaxGate(30.0)], ids=["sigmoid", "softmax", "softmax at 30"]
)
@pytest.mark.parametrize("router", [PooledLinear, SqueezeExcite])
def test_any_gate_with_equal_coefficients(router: type, gate: nn.Module) -> None:
    static, x = nn.Conv2d(4, 4, 3).double(), torch.randn(2, 4, 8, 8, dtype=torch.float64)

    def routed(site: ConvSite, slices: Slices) -> Router:
        return router(site.in_channels, slices.size, gate=copy.deepcopy(gate))

    made = condconv.convert(static, targets=".*", num_experts=4, router=routed)
    assert torch.allclose(made(x), static(x), rtol=0, atol=1e-12)


def test_experts_differ_as_announced_and_sum_to_the_kernel() -> None:
    static = nn.Conv2d(32, 64, 3).double()
    made = condconv.convert(static, targets=".*", num_experts=8)
    experts, kernel, c = made.weight.detach(), static.weight.detach(), 2 / 8
    assert torch.allclose(experts.sum(0), 8 * c * kernel, atol=1e-13)
    delta = experts / c - kernel
    assert float(delta.std()) == pytest.approx(RELATIVE_SCALE * float(kernel.std()), rel=0.02)
    correlation = torch.corrcoef((experts / c).flatten(1))
    assert correlation[0, 1] == pytest.approx(1 / (1 + RELATIVE_SCALE**2), abs=0.05)
    assert torch.equal(made.bias, (c * static.bias).expand(8, 64))


def test_one_expert_is_the_kernel_itself() -> None:
    static = nn.Conv2d(3, 4, 3)
    made = condconv.convert(static, "dynamic_convolution", targets=".*", num_experts=1)
    assert torch.equal(made.weight[0], static.weight) and torch.equal(made.bias[0], static.bias)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_constant_kernels_get_different_experts_too(value: float) -> None:
    static = nn.Conv2d(3, 4, 1)
    nn.init.constant_(static.weight, value)
    x = torch.randn(2, 3, 4, 4)
    made = condconv.convert(static, targets=".*", num_experts=4)
    assert float(made.weight.detach().diff(dim=0).abs().max()) > 1e-3
    assert torch.allclose(made(x), static(x), atol=1e-6)


def test_the_seed_decides_the_experts() -> None:
    static = nn.Conv2d(3, 4, 3)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(condconv.convert(copy.deepcopy(static), targets=".*").weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("variant", ["condconv", "dynamic_convolution"])
def test_experts_and_coefficients_part_in_training(variant: str) -> None:
    net = Net(channels=32)
    condconv.convert(net, variant, targets=r"blocks\.", num_experts=4, input_size=SIZE)
    layer = net.blocks[1].conv1
    with condconv.record_routing(net) as routing:
        net(torch.randn(8, *SIZE))
    assert float(routing["blocks.1.conv1"].std(0).max()) == 0
    gaps = [float((layer.weight[0] - layer.weight[1]).detach().norm())]
    x, y = torch.randn(16, *SIZE), torch.randint(5, (16,))
    schedule = condconv.RoutingSchedule(net, 1, end=1.0) if variant == "dynamic_convolution" else None
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
        if schedule is not None:
            schedule.step()
    gaps.append(float((layer.weight[0] - layer.weight[1]).detach().norm()))
    assert gaps[1] != gaps[0]
    with condconv.record_routing(net) as routing:
        net(x)
    assert float(routing["blocks.1.conv1"].std(0).max()) > 1e-4  # examples are told apart
    assert float(routing["blocks.1.conv1"].std(1).max()) > 1e-4  # and so are experts


def test_fresh_is_not_upcycled() -> None:
    net, x = Net().eval(), torch.randn(2, *SIZE)
    expected = net(x)
    condconv.convert(net, targets=".*", init="fresh")
    assert not torch.allclose(net(x), expected, atol=1e-2)
    assert net.blocks[0].router.body[-1].weight.any()
