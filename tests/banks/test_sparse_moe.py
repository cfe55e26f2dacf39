"""Sparse mixtures: k experts for each example, all of which noise tries; copies keep the function for any routing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.errors import ConversionError
from condconv.training.balance import squared_variation
from tests.conversion.small import SIZE, Net


def drawn(k: int) -> Any:
    """A layer whose router tells its inputs apart."""
    torch.manual_seed(0)
    layer = condconv.SparseMoEConv2d(6, 5, 3, padding=1, num_experts=4, k=k)
    nn.init.normal_(layer.router.body[0].weight, std=3.0)
    return layer


@pytest.mark.parametrize("k", [1, 2, 3])
def test_k_experts_have_weight_that_sums_to_one_and_the_router_learns(k: int) -> None:
    layer, x = drawn(k), torch.randn(64, 6, 5, 5)
    for training in (True, False):
        alpha = layer.train(training).router(x)
        assert ((alpha > 0).sum(dim=1) == k).all()
        torch.testing.assert_close(alpha.sum(dim=1), torch.ones(64))
    layer.train()(x).square().mean().backward()
    assert (layer.router.body[0].weight.grad.abs().amax(dim=1) > 0).sum() > k


def test_noise_tries_all_experts_in_training_and_its_scale_is_learned() -> None:
    layer: Any = condconv.SparseMoEConv2d(6, 5, 3, num_experts=4, k=1)
    x = torch.randn(64, 6, 5, 5)
    assert layer.router(x).bool().any(dim=0).all()
    assert layer.eval().router(x).bool().any(dim=0).tolist() == [True, False, False, False]
    with torch.no_grad():
        layer.router.body[0].bias[4:] = -100.0  # softplus(-100) = 0
    assert layer.train().router(x).bool().any(dim=0).tolist() == [True, False, False, False]


def test_upcycled_it_keeps_the_function_in_training_too_and_then_experts_part() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(16, *SIZE)
    expected = net(x)
    condconv.convert(net, "sparse_moe", targets="conv", num_experts=4)
    torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).square().mean().backward()
    optimizer.step()
    weight = net.blocks[0].conv1.weight
    assert all(not torch.equal(weight[0], other) for other in weight[1:])


def test_a_gate_whose_weights_do_not_sum_to_one_is_refused() -> None:
    with pytest.raises(ConversionError, match="weights sum to one"):
        condconv.convert(
            Net(), "sparse_moe", targets="conv",
            router=lambda site, slices: condconv.PooledLinear(site.in_channels, slices.size),
        )  # fmt: skip


def test_the_loss_on_the_weights_spreads_images_over_experts() -> None:
    layer, x = drawn(1), torch.randn(64, 6, 5, 5)
    with torch.no_grad():
        layer.router.body[0].bias[0] = 5.0
    optimizer = torch.optim.SGD(layer.router.parameters(), lr=0.5)
    before = squared_variation(layer.eval().router(x).sum(dim=0))
    for _ in range(50):
        optimizer.zero_grad()
        squared_variation(layer.train().router(x).sum(dim=0)).backward()
        optimizer.step()
    assert squared_variation(layer.eval().router(x).sum(dim=0)) < 0.5 * before
