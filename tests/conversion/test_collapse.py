"""Collapse: a static copy with the mean coefficients, and a number for what that costs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import condconv
from condconv.errors import ConversionError
from condconv.layers import ConditionalLayer
from tests.conversion.small import SIZE, Net


def trained(**arguments: object) -> nn.Module:
    net = condconv.convert(Net(), **{"targets": ".", "num_experts": 3, "input_size": SIZE, **arguments})
    for module in net.modules():
        if isinstance(module, condconv.PooledLinear):
            nn.init.normal_(module.body[-1].weight, std=2.0)
    return net.eval()


@pytest.mark.parametrize("share", ["block", None, "network"])
def test_it_is_static_and_the_model_stays(share: object) -> None:
    net, x = trained(share=share), torch.randn(6, *SIZE)
    state, before = copy.deepcopy(net.state_dict()), net(x)
    static = condconv.collapse(net, [x[:4], x[4:]])
    assert not any(isinstance(module, ConditionalLayer) for module in static.modules())
    assert list(static.state_dict()) == list(Net().state_dict())
    assert torch.equal(net(x), before) and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_kernels_are_mixed_with_the_mean_over_all_examples() -> None:
    net, x = trained(share=None), torch.randn(7, *SIZE)
    with condconv.record_routing(net) as routing:
        net(x)
    static = condconv.collapse(net, [(x[:4], torch.zeros(4)), (x[4:], torch.zeros(3))])
    mean = routing["stem"].mean(0)
    expected = torch.einsum("n,noihw->oihw", mean, net.stem.weight.detach())
    assert torch.allclose(static.stem.weight, expected, atol=1e-6)
    assert torch.allclose(static.stem.bias, mean @ net.stem.bias.detach(), atol=1e-6)


def test_it_says_how_far_the_outputs_are() -> None:
    net, x = trained(), torch.randn(4, *SIZE)
    static = condconv.collapse(net, [x])
    expected = (static(x) - net(x)).abs().max() / net(x).abs().max()
    assert static.deviation.relative == pytest.approx(float(expected.detach()), rel=1e-4)
    assert static.deviation.relative > 1e-3 and static.deviation.examples == 4
    assert "differ by at most" in str(static.deviation)


def test_constant_routing_loses_nothing() -> None:
    net = condconv.convert(Net().eval(), targets=".", input_size=SIZE)
    assert condconv.collapse(net, [torch.randn(3, *SIZE)]).deviation.relative < 1e-5


def test_originals_give_class_and_hooks_a_built_model_gets_plain_layers() -> None:
    class Renamed(nn.Conv2d):
        pass

    net = condconv.convert(nn.Sequential(Renamed(3, 4, 3, padding="same")), targets=".")
    assert type(condconv.collapse(net, [torch.randn(2, 3, 6, 6)])[0]) is Renamed
    built = nn.Sequential(condconv.DynamicConv2d(3, 4, 3, stride=2, padding_mode="reflect", padding=1), nn.Flatten())
    static = condconv.collapse(built.eval(), [torch.randn(2, 3, 6, 6)])
    assert type(static[0]) is nn.Conv2d and static[0].padding_mode == "reflect"


def test_what_cannot_be_collapsed() -> None:
    net = trained()
    with pytest.raises(ConversionError, match="static already"):
        condconv.collapse(Net(), [torch.randn(1, *SIZE)])
    with pytest.raises(ConversionError, match="gives no batch"):
        condconv.collapse(net, [])
    net.unused = condconv.CondConv2d(3, 3, 1)
    with pytest.raises(ConversionError, match="unused did not run"):
        condconv.collapse(net, [torch.randn(1, *SIZE)])
