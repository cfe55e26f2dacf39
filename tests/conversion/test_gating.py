"""Blocks get gates: the function is kept, blocks that cannot be left out are named, and every other verb knows them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.errors import ConversionError
from tests.conversion.networks import assert_same
from tests.conversion.small import SIZE, Net, Residual


class Down(Residual):
    """Halves what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, ::2, ::2]


def network() -> Any:
    torch.manual_seed(0)
    net = Net().eval()
    net.blocks[1] = Down(6).eval()
    return net


def gated(**arguments: Any) -> Any:
    return condconv.convert(network(), "gated_block", input_size=SIZE, **arguments)


def half_open(net: Any) -> Any:
    """The same with gates that differ between examples."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, condconv.GatedBlock):
                last = module.router._linears[-1]
                last.weight.normal_(std=5)
                last.bias.zero_()
    return net


def images(batch: int = 8) -> Tensor:
    return torch.randn(batch, *SIZE, generator=torch.Generator().manual_seed(2))


def test_a_plan_names_what_cannot_be_left_out_and_the_function_is_kept_and_undone() -> None:
    net, x = network(), images()
    state, expected = copy.deepcopy(net.state_dict()), net(x)
    made = condconv.plan(net, "gated_block", input_size=SIZE)
    assert_same(net, state)
    assert made.converted == ("blocks.0", "blocks.2", "blocks.3")
    assert {row.name: row.why for row in made.layers if not row.converted} == {
        "blocks.1": "makes (6, 3, 3) of (6, 6, 6), and cannot be left out"
    }
    assert "blocks.1" in str(made) and "3 blocks" in str(made)
    made.apply()
    assert torch.equal(net(x), expected)
    assert made.params_after == sum(p.numel() for p in net.parameters())
    assert made.macs_after == condconv.count(net, SIZE).macs
    assert_same(condconv.revert(net), state)
    assert isinstance(net.blocks[0], Residual)


def test_targets_pick_blocks_and_what_has_a_gate_gets_no_second_one() -> None:
    picked = ["blocks.0", "blocks.3"]
    for targets in (r"\.[03]$", lambda name, _: name in picked, [r"\.0$", r"\.3$"]):
        net = gated(targets=targets)
        assert [n for n, m in net.named_modules() if isinstance(m, condconv.GatedBlock)] == picked
    again = condconv.plan(net, "gated_block", input_size=SIZE)
    assert again.converted == ("blocks.2",)
    assert [row.why for row in again.layers].count("has a gate already") == 2
    with pytest.raises(condconv.ArgumentError, match="matches none"):
        gated(targets="nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 4}, "num_experts=4 is for variants of layers"),
        ({"share": "block"}, "share='block' is for variants of layers"),
        ({"reduction": 4}, "reduction=4 is for variants of layers"),
        ({"input_size": None}, "input_size=None does not tell which blocks"),
        ({"init": "random"}, "init='random'"),
    ],
)
def test_arguments_of_layers_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(condconv.ArgumentError, match=message):
        condconv.plan(network(), "gated_block", **{"input_size": SIZE, **arguments})


def test_tokens_have_no_channels_that_are_known() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x))

    made = condconv.plan(nn.Sequential(Mixer(), Mixer()), "gated_block", input_size=(3, 4))
    assert not made.converted and "has no convolution" in made.layers[0].why
    with pytest.raises(ConversionError, match=r"no block can be converted: has no convolution.* \(2\)"):
        made.apply()


@torch.no_grad()
def test_multiply_adds_are_those_of_the_blocks_that_run() -> None:
    net, x = half_open(gated()), images()
    one, every = condconv.count(network(), SIZE), condconv.count(net, x)
    with condconv.record_routing(net, "gate") as routing:
        net(x)
    assert 0 < sum(float(gate.sum()) for gate in routing.values()) < 3 * len(x)
    blocks = {name: sum(row.macs for row in one.rows if row.name.startswith(name)) for name in routing}
    routers = sum(row.macs for row in every.rows if row.name.endswith("router"))
    left_out = sum(blocks[name] * (len(x) - int(gate.sum())) for name, gate in routing.items())
    assert every.macs == len(x) * one.macs - left_out + routers


def test_a_loss_on_the_gates_closes_them_and_then_revert_asks() -> None:
    net, x = gated().train(), images(16)
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    for _ in range(40):
        gates: list[Tensor] = []

        def keep(_: str, gate: Tensor, gates: list[Tensor] = gates) -> Tensor:
            gates.append(gate)
            return gate

        with condconv.override_routing(net, keep, "gate"):
            net(x)
        optimizer.zero_grad()
        torch.cat(gates).mean().backward()
        optimizer.step()
    with condconv.record_routing(net.eval(), "gate") as routing:
        net(x)
    assert not any(bool(gate.any()) for gate in routing.values())
    with pytest.raises(ConversionError, match=r"blocks\.0, .* changed since the conversion"):
        condconv.revert(net)
    assert isinstance(condconv.revert(net, discard_training=True).blocks[0], Residual)


@torch.no_grad()
def test_gates_around_conditional_layers_in_either_order_are_saved_and_collapsed(tmp_path: Path) -> None:
    x = images()
    for order in (("condconv", "gated_block"), ("gated_block", "condconv")):
        net = network()
        for variant in order:
            condconv.convert(net, variant, input_size=SIZE)
        expected = half_open(net)(x)
        condconv.save_pretrained(net, tmp_path / order[0], input_size=SIZE)
        again = condconv.from_pretrained(tmp_path / order[0], model=network()).eval()
        assert torch.equal(again(x), expected)
        static = condconv.collapse(net, [x])
        with condconv.record_routing(net, "gate") as routing:
            net(x)
        for name, gate in routing.items():
            kept = float(gate.mean()) > 0.5
            assert type(static.get_submodule(name)) is (Residual if kept else nn.Identity)
