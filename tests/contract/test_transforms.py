"""Transforms of `torch.func` on every layer and on shared routing: each result is what plain autograd gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

import condconv
from condconv.execution import question
from condconv.inference import optimize_for_inference
from condconv.routers import attach_scope
from condconv.variants import variants
from tests.contract.cases import (
    LAYERS,
    MIXTURES,
    TWO_D,
    Block,
    example_input,
    example_layer,
    name_of,
    shared_router,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, of forward mode
BATCH = 3
Values = dict[str, Tensor]


def values_of(module: nn.Module) -> Values:
    """The parameters, detached: what a transform differentiates by."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def loss_of(module: nn.Module) -> Callable[[Values, Tensor], Tensor]:
    """A scalar that depends on every element of the output."""
    return lambda values, x: functional_call(module, values, (x,)).square().sum()


def plain_gradients(module: nn.Module, x: Tensor) -> Values:
    """What autograd gives for the same scalar."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(module(x).square().sum(), parameters), strict=True))


def close(one: Values, other: Values) -> None:
    """Equal up to the order of sums."""
    torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)


def scoped(variant: str) -> nn.Module:
    """A block whose layers share a router, without the batch statistics that examples would share."""
    layer: Any = next(kind for kind in variants[variant].layers if kind in TWO_D)
    block = Block(layer, 4, num_experts=3).eval()
    members = [module for module in block.modules() if isinstance(module, layer)]
    attach_scope(block, "", members, shared_router(members, 4))
    return block


@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
def test_gradients_of_each_example_are_those_of_plain_autograd(cls: Any) -> None:
    layer, x = example_layer(cls, num_experts=2), example_input(cls, BATCH, size=3)
    close(grad(loss_of(layer))(values_of(layer), x), plain_gradients(layer, x))
    examples = x.unsqueeze(1) if cls.static_type is nn.Linear else x  # Positions without a batch would be examples.
    each = vmap(grad(loss_of(layer)), (None, 0))(values_of(layer), examples)
    for b in range(BATCH):
        close({name: gradient[b] for name, gradient in each.items()}, plain_gradients(layer, x[b : b + 1]))


@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
def test_forward_and_reverse_jacobians_agree_with_autograd(cls: Any) -> None:
    layer, x = example_layer(cls, channels=2, num_experts=2), example_input(cls, 2, channels=2, size=2)
    plain = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(jacrev(layer)(x), plain, rtol=1e-4, atol=1e-5)
    tangent = torch.randn_like(x)
    y, directional = jvp(layer, (x,), (tangent,))  # type: ignore[misc]
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)
    expected = torch.tensordot(plain, tangent, dims=x.dim())
    torch.testing.assert_close(directional, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", MIXTURES)
def test_layers_that_share_a_router_are_transformed_too(variant: str) -> None:
    block, x = scoped(variant), torch.randn(BATCH, 4, 4, 4)
    close(grad(loss_of(block))(values_of(block), x), plain_gradients(block, x))
    each = vmap(grad(loss_of(block)), (None, 0))(values_of(block), x.unsqueeze(1))
    for b in range(BATCH):
        close({name: gradient[b] for name, gradient in each.items()}, plain_gradients(block, x[b : b + 1]))
    tangent = torch.randn_like(x)
    _, directional = jvp(block, (x,), (tangent,))  # type: ignore[misc]
    torch.testing.assert_close((jacrev(block)(x) * tangent).sum(dim=(4, 5, 6, 7)), directional, rtol=1e-3, atol=1e-4)
    with pytest.raises(condconv.RoutingError, match="is not running"):  # No loan outlives a transform.
        block.expand(x)


@pytest.mark.parametrize("variant", MIXTURES)
def test_stacked_networks_run_as_one(variant: str) -> None:
    """An ensemble: parameters and buffers, the temperature among them, have a dimension of their own."""
    networks, x = [scoped(variant).train() for _ in range(2)], torch.randn(BATCH, 4, 4, 4)
    for network in networks:
        network.norm.eval()
    values, buffers = torch.func.stack_module_state(networks)
    for _ in range(3):  # A temperature is complained of only after a while.
        network = scoped(variant)
        y = vmap(lambda v, b, network=network: functional_call(network, (v, b), (x,)))(values, buffers)
    expected = [one.eval()(x) for one in networks]
    torch.testing.assert_close(y, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cls", TWO_D, ids=name_of)
def test_compiled_transforms_are_the_same(cls: Any) -> None:
    layer, x = example_layer(cls, num_experts=2), example_input(cls, BATCH, size=3)
    each = vmap(grad(loss_of(layer)), (None, 0))
    compiled = torch.compile(each, fullgraph=True, backend="aot_eager")
    close(compiled(values_of(layer), x), each(values_of(layer), x))


def test_a_strategy_that_cannot_be_transformed_says_what_to_do() -> None:
    if not condconv.execution.native.available():
        pytest.skip("there is no native operator here")
    layer = condconv.CondConv2d(4, 4, 3, num_experts=2, strategy="native")
    layer.path = "stem"
    x = torch.randn(2, 4, 5, 5)
    message = r"stem \(CondConv2d\): strategy='native' cannot serve it: .*transforms of torch.func.*strategy='auto'"
    with pytest.raises(condconv.StrategyError, match=message):
        grad(loss_of(layer))(values_of(layer), x)
    with condconv.use_strategy("auto"):
        close(grad(loss_of(layer))(values_of(layer), x), plain_gradients(layer, x))
    layer(x)
    assert condconv.last_strategy(layer) == "native"  # Outside it serves as before.


def test_what_was_tuned_is_heeded_outside_of_transforms_alone() -> None:
    layer, x = condconv.CondConv2d(4, 4, 3, num_experts=2), torch.randn(2, 4, 5, 5)
    mixture = layer.bank(torch.rand(2, 2))
    layer.pins = {question(x, mixture): "reference"}
    layer(x)
    assert condconv.last_strategy(layer) == "reference"
    close(grad(loss_of(layer))(values_of(layer), x), plain_gradients(layer, x))


def test_an_inference_form_is_transformed_by_its_input() -> None:
    layer = condconv.CondConv2d(4, 4, 3, num_experts=2).eval()
    form = optimize_for_inference(nn.Sequential(layer)).requires_grad_(False)
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    torch.testing.assert_close(vmap(form)(x.unsqueeze(1)).squeeze(1), form(x), rtol=1e-4, atol=1e-5)
    gradient = grad(lambda x: form(x).square().sum())(x)
    torch.testing.assert_close(gradient, grad(lambda x: layer(x).square().sum())(x), rtol=1e-4, atol=1e-4)
