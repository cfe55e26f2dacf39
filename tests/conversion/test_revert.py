"""Revert brings the same objects back, bit for bit, or says why it does not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.conversion import forget_originals
from condconv.errors import ConversionError
from tests.conversion.networks import assert_same
from tests.conversion.small import SIZE, Net


def converted(**arguments: object) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    net = Net()
    state, modules = copy.deepcopy(net.state_dict()), dict(net.named_modules())
    condconv.convert(net, **{"targets": ".", "input_size": SIZE, **arguments})
    return net, state, modules


@pytest.mark.parametrize("share", ["block", None, "network", 2])
@pytest.mark.parametrize("init", ["upcycle", "fresh"])
def test_the_same_objects_come_back(share: object, init: str) -> None:
    net, state, modules = converted(share=share, init=init)
    assert list(net.state_dict()) != list(state)
    assert condconv.revert(net) is net
    assert_same(net, state)
    assert dict(net.named_modules()) == modules
    assert not any("Routed" in type(module).__name__ for module in net.modules())


def test_originals_are_no_parameters_and_no_state() -> None:
    net, state, modules = converted()
    held = {id(p) for p in net.parameters()}
    assert id(modules["stem"].weight) not in held
    assert not any("origin" in key for key in net.state_dict())
    assert modules["stem"] not in set(net.modules())


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"]
)
def test_originals_survive_copies(how: object) -> None:
    net, state, _ = converted()
    x = torch.randn(2, *SIZE)
    other = how(net.eval())
    assert torch.equal(other(x), net(x))
    condconv.revert(other)
    assert_same(other, state)
    assert isinstance(net.stem, condconv.CondConv2d)


def test_hooks_requires_grad_and_modes() -> None:
    net = Net()
    seen: list[str] = []
    handle = net.stem.register_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    net.blocks[0].conv1.weight.requires_grad_(False)
    net.blocks[1].conv2.eval()
    stem = net.stem
    condconv.convert(net, targets=".")
    net(torch.randn(1, *SIZE))
    assert seen == ["CondConv2d"]  # hooks of a layer go on working while it is converted
    assert not net.blocks[0].conv1.weight.requires_grad and net.blocks[0].conv2.weight.requires_grad
    assert not net.blocks[1].conv2.training and net.blocks[1].conv1.training
    condconv.revert(net)
    assert net.stem is stem and not net.blocks[0].conv1.weight.requires_grad
    assert not net.blocks[1].conv2.training and net.blocks[1].conv1.training
    net(torch.randn(1, *SIZE))
    assert seen == ["CondConv2d", "Conv2d"]
    handle.remove()
    net(torch.randn(1, *SIZE))
    assert len(seen) == 2


def test_a_handle_removed_while_converted_stays_removed() -> None:
    net = Net()
    seen: list[int] = []
    handle = net.stem.register_forward_pre_hook(lambda module, args: seen.append(1))
    condconv.convert(net, targets="stem")
    handle.remove()
    condconv.revert(net)
    net(torch.randn(1, *SIZE))
    assert not seen


def test_layers_follow_where_the_model_went() -> None:
    net, state, _ = converted()
    net.double().eval()
    condconv.revert(net)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert not any(module.training for module in net.modules())
    net.float()
    assert_same(net, state)


def test_after_training_it_asks() -> None:
    net, state, _ = converted(num_experts=2)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        net(torch.randn(2, *SIZE)).square().mean().backward()
        optimiser.step()
    learned = net.blocks[0].bn1.weight.detach().clone()
    with pytest.raises(
        ConversionError, match=r"stem, .* and \d+ more changed.*condconv\.collapse.*discard_training=True"
    ):
        condconv.revert(net)
    condconv.revert(net, discard_training=True)
    assert torch.equal(net.stem.weight, state["stem.weight"])
    assert torch.equal(net.blocks[0].bn1.weight, learned)


@pytest.mark.parametrize("part", ["router", "bias"])
def test_a_change_of_router_or_bias_alone_is_noticed(part: str) -> None:
    net, _, _ = converted()
    layer = net.blocks[2]
    with torch.no_grad():
        (layer.router.body[-1].bias if part == "router" else layer.conv2.bank.bias).add_(1e-3)
    with pytest.raises(ConversionError, match="changed since"):
        condconv.revert(net)


def test_training_the_rest_of_the_network_is_no_obstacle() -> None:
    net, _, _ = converted()
    with torch.no_grad():
        net.blocks[0].bn1.weight.mul_(2)
    condconv.revert(net)
    assert torch.equal(net.blocks[0].bn1.weight, torch.full((6,), 2.0))


def test_what_has_no_original_is_refused() -> None:
    with pytest.raises(ConversionError, match="no original is known of the model.*collapse"):
        condconv.revert(condconv.CondConv2d(3, 4, 1))
    net, _, _ = converted()
    with pytest.raises(ConversionError, match="no original"):
        condconv.revert(forget_originals(net))
    with pytest.raises(ConversionError, match="nothing to revert"):
        condconv.revert(Net())
