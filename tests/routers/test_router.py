"""Routers against what the papers' equations say, written out."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import condconv
from condconv.routers import PooledLinear, SqueezeExcite


def test_pooled_linear_is_equation_2_of_condconv() -> None:
    router = PooledLinear(5, 3).double()
    x = torch.randn(4, 5, 6, 7, dtype=torch.float64)
    linear = router.body[0]
    torch.testing.assert_close(router(x), torch.sigmoid(x.mean((2, 3)) @ linear.weight.T + linear.bias))
    assert not linear.bias.any() and linear.weight.abs().max() <= (6 / 8) ** 0.5


def test_squeeze_excite_is_the_attention_of_dynamic_convolution() -> None:
    router = SqueezeExcite(10, 4).double().eval()
    x = torch.randn(3, 10, 5, 5, dtype=torch.float64)
    first, _, second = router.body
    assert first.out_features == 10 // 4 and second.out_features == 4
    assert float(router.gate.temperature) == 30
    logits = torch.relu(x.mean((2, 3)) @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(router(x), torch.softmax(logits / 30, dim=1))
    assert SqueezeExcite(2, 4).body[0].out_features == 1


@pytest.mark.parametrize("hidden", [2, 16, 128])
def test_hidden_layers_of_the_ablation(hidden: int) -> None:
    router = PooledLinear(16, 4, hidden_channels=hidden)
    assert [m.out_features for m in router.body if isinstance(m, torch.nn.Linear)] == [hidden, 4]
    assert router(torch.randn(2, 16, 3, 3)).shape == (2, 4)
    assert router.macs((3, 3)) == {"pool": 16 * 9, "linear": 16 * hidden + hidden * 4}


def test_hierarchical_routing_sees_the_previous_coefficients() -> None:
    router = PooledLinear(5, 3, previous_experts=2)
    x, previous = torch.randn(4, 5, 6, 6), torch.rand(4, 2)
    linear = router.body[0]
    expected = torch.sigmoid(torch.cat([x.mean((2, 3)), previous], 1) @ linear.weight.T + linear.bias)
    torch.testing.assert_close(router(x, previous), expected)


def test_input_dropout_is_for_training_only() -> None:
    router = PooledLinear(64, 4, dropout=0.5)
    x = torch.ones(1, 64, 2, 2)
    assert torch.equal(router.eval()(x), router.eval()(x))
    assert not torch.equal(router.train()(x), router.train()(x))


@pytest.mark.parametrize("make", [PooledLinear, SqueezeExcite, lambda c, n: PooledLinear(c, n, hidden_channels=8)])
def test_a_router_reset_to_constant_ignores_its_input_until_it_learns(make: object) -> None:
    router = make(6, 4).double()
    constant = router.reset_to_constant()
    x = torch.randn(5, 6, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(router(x), constant.expand(5, 4))
    (router(x) * torch.randn(5, 4)).sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in [router._linears[-1]])
    assert router.training


def test_routers_accept_any_number_of_spatial_dimensions() -> None:
    router = condconv.PooledLinear(3, 2)
    x = torch.randn(4, 3)
    for space in [(), (1,), (1, 1), (1, 1, 1)]:
        torch.testing.assert_close(router(x.reshape(4, 3, *space)), router(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_without_a_gradient_the_coefficients_are_the_same(layout: torch.memory_format) -> None:
    router = PooledLinear(5, 3)
    x = torch.randn(4, 5, 6, 7).to(memory_format=layout)
    with torch.no_grad():
        coefficients = router(x)
    torch.testing.assert_close(coefficients, router(x).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.vmap(router)(x.unsqueeze(1)).squeeze(1), router(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # Torch itself.
def test_a_forward_derivative_needs_no_gradient_mode() -> None:
    router, x, tangent = PooledLinear(5, 3), torch.randn(4, 5, 6, 7), torch.randn(4, 5, 6, 7)
    with torch.no_grad(), forward_ad.dual_level():
        derivative = forward_ad.unpack_dual(router(forward_ad.make_dual(x, tangent))).tangent
    _, expected = torch.func.jvp(router, (x,), (tangent,))  # type: ignore[misc]
    torch.testing.assert_close(derivative, expected)
