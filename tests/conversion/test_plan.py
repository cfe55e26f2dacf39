"""A plan changes nothing, tells everything, and is applied once, to its own model."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.coefficients import Slices
from condconv.counting import count
from condconv.errors import ArgumentError, ConversionError, UnknownNameError
from condconv.layers import ConditionalLayer
from condconv.routers import PooledLinear, SigmoidGate, TopKGate
from condconv.site import ConvSite
from tests.conversion.networks import assert_same
from tests.conversion.small import SIZE, Net


def test_planning_changes_nothing() -> None:
    net = Net()
    net.blocks[1].eval()
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    modes = [module.training for module in net.modules()]
    modules = dict(net.named_modules())
    condconv.plan(net, targets=".", input_size=SIZE)
    assert_same(net, state)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in net.modules()] == modes
    assert dict(net.named_modules()) == modules


@pytest.mark.parametrize("variant", ["condconv", "dynamic_convolution"])
@pytest.mark.parametrize("share", ["block", None, "network", 2, {"first": r"blocks\.[01]", "rest": r"blocks\.[23]"}])
def test_what_it_announces_is_what_counting_finds(variant: str, share: object) -> None:
    net = Net()
    before = count(net, SIZE)
    plan = condconv.plan(net, variant, targets=[r"blocks\.", "head"], share=share, num_experts=3, input_size=SIZE)
    assert (plan.macs_before, plan.params_before) == (before.macs, before.params)
    after = count(plan.apply(), SIZE)
    assert (plan.macs_after, plan.params_after) == (after.macs, after.params)
    rows = {row.name: row for row in after.rows}
    for layer in plan.layers:
        own = rows.get(f"{layer.name}.router")
        found = rows[layer.name].macs + (own.macs if own is not None and layer.kind != "router" else 0)
        assert layer.macs_after == found


def test_the_table_lists_every_layer_with_a_reason() -> None:
    net = Net()
    plan = condconv.plan(net, targets="depthwise|conv1", input_size=SIZE)
    text = str(plan)
    for name in ("stem", "blocks.0.conv1", "blocks.3.conv2", "head", "blocks.2.router", "whole model"):
        assert re.search(rf"^{re.escape(name)}\s", text, re.MULTILINE)
    assert "'paper'" in text and "converted" in text and "skipped" in text
    assert all(layer.why for layer in plan.layers)
    assert plan.converted == tuple(f"blocks.{i}.conv1" for i in range(4))


def test_without_input_size_there_are_no_multiply_adds() -> None:
    plan = condconv.plan(Net(), targets="conv1")
    assert plan.macs_before is None and plan.macs_after is None
    assert all(layer.macs_before is None for layer in plan.layers)
    assert "pass input_size" in str(plan)
    assert plan.apply()(torch.randn(2, *SIZE)).shape == (2, 5)


def test_applying_twice_to_another_model_or_to_a_changed_one() -> None:
    net = Net()
    plan, late = condconv.plan(net, targets="conv1"), condconv.plan(net, targets="conv")
    with pytest.raises(ConversionError, match="another model"):
        plan.apply(Net())
    assert plan.apply(net) is net
    with pytest.raises(ConversionError, match="applied before"):
        plan.apply()
    with pytest.raises(ConversionError, match=r"blocks\.0\.conv1 was replaced"):
        late.apply()
    assert not any(isinstance(block.conv2, ConditionalLayer) for block in net.blocks)


def test_nothing_that_can_be_converted() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    condconv.convert(net, targets=".")
    with pytest.raises(ConversionError, match=r"no layer can be converted: already conditional \(2\)"):
        condconv.convert(net, targets=".")


def test_a_second_conversion_adds_to_the_first() -> None:
    net, x = Net().eval(), torch.randn(2, *SIZE)
    expected = net(x)
    condconv.convert(net, targets="conv1", share=None)
    condconv.convert(net, "dynamic_convolution", targets="conv2")
    assert torch.allclose(net(x), expected, atol=1e-5)
    assert {type(block.conv2).__name__ for block in net.blocks} == {"DynamicConv2d"}


def test_the_root_may_be_replaced() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    made = condconv.convert(conv, targets="dense", num_experts=3)
    assert isinstance(made, condconv.CondConv2d)
    assert torch.allclose(made(x), conv(x), atol=1e-6)
    assert condconv.revert(made) is conv


def test_a_module_registered_twice_is_replaced_in_both_places() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    net.append(net[0])
    condconv.convert(net, targets=".")
    assert isinstance(net[0], condconv.CondConv2d) and net[0] is net[2]
    condconv.revert(net)
    assert not isinstance(net[0], condconv.CondConv2d) and net[0] is net[2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"variant": "condcov"}, UnknownNameError, "did you mean 'condconv'"),
        ({"num_experts": 0}, ArgumentError, "num_experts=0 must be at least 1"),
        ({"num_experts": 2.5}, ArgumentError, "num_experts=2.5"),
        ({"init": "copy"}, ArgumentError, "init='copy' must be one of upcycle, fresh"),
        ({"share": "blocks"}, ArgumentError, "share='blocks' is not a way to share"),
        ({"share": 0}, ArgumentError, "share=0"),
        ({"share": {"a": "nowhere"}}, ArgumentError, "matches none of the layers"),
        ({"share": {"a": "conv1", "b": r"blocks\.0"}}, ArgumentError, "into 'a' and 'b'"),
        ({"input_size": (3, -1, 4)}, ArgumentError, "below 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    net = Net()
    with pytest.raises(error, match=message):
        condconv.plan(net, **{"variant": "condconv", "targets": "conv1", **arguments})


def test_wrapped_and_compiled_models_are_refused() -> None:
    for wrapped in (nn.DataParallel(Net()), torch.compile(Net())):
        with pytest.raises(ConversionError, match="convert the module inside first"):
            condconv.plan(wrapped)


def test_a_top_k_gate_cannot_be_upcycled() -> None:
    def router(site: ConvSite, slices: Slices) -> PooledLinear:
        return PooledLinear(site.in_channels, slices.size, gate=TopKGate(SigmoidGate(), k=2))

    with pytest.raises(ConversionError, match="TopKGate.*init='fresh'"):
        condconv.plan(Net(), targets="conv1", router=router)
    net = condconv.convert(Net(), targets="conv1", router=router, init="fresh")
    assert isinstance(net.blocks[0].router.gate, TopKGate)
