"""Banks of several layers with something in common: a warehouse of a stage is placed, counted and saved once."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.conversion.apply import conditional_layers
from condconv.counting import count
from condconv.variants.kernel_warehouse import WarehouseBank

SIZE = (3, 32, 32)


def network() -> nn.Module:
    """A small residual network in eval mode, with statistics that are not the fresh ones."""
    torch.manual_seed(0)
    net = condconv.create_model("cifar_resnet8", num_classes=4)
    with torch.no_grad():
        net(torch.randn(8, *SIZE))
    return net.eval()


def warehouses(net: nn.Module) -> dict[str, list[str]]:
    """The layers of each warehouse, by the one that holds it."""
    found: dict[Any, list[str]] = {}
    for name, layer in conditional_layers(net):
        found.setdefault(layer.bank.common(), []).append(name)
    return {names[0]: names for names in found.values()}


def stirred(net: nn.Module) -> nn.Module:
    """The network with routers that tell examples apart, half way through their schedule."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, condconv.routers.Router):
            module.reset_parameters()
            module.gate.anneal(0.5)
    return net


def test_the_layers_of_a_stage_share_one_that_is_counted_and_saved_once(tmp_path: Path) -> None:
    net, x = network(), torch.randn(3, *SIZE)
    expected, static = net(x).detach(), copy.deepcopy(net.state_dict())
    planned = condconv.plan(copy.deepcopy(net), "kernel_warehouse", targets="layer", input_size=SIZE)
    net = condconv.convert(net, "kernel_warehouse", targets="layer", input_size=SIZE)
    groups = warehouses(net)
    assert [names[0] for names in groups.values()] == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    assert sum(map(len, groups.values())) == len(planned.converted) > 3
    torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)
    counted = count(net, SIZE)
    assert (counted.params, counted.macs) == (planned.params_after, planned.macs_after)
    assert counted.params == sum(p.numel() for p in net.parameters()) == planned.params_after
    cells = [key for key in net.state_dict() if key.endswith("warehouse.cells")]
    assert cells == [f"{holder}.bank.warehouse.cells" for holder in groups]
    kernels = sum(layer.bank._cut(torch.empty(layer.bank.kernel_shape)).numel() for _, layer in conditional_layers(net))
    assert kernels == sum(net.state_dict()[key].numel() for key in cells), "budget 1 holds what the kernels held"
    y = stirred(net)(x)
    condconv.save_pretrained(net, tmp_path / "saved")
    again = condconv.from_pretrained(tmp_path / "saved")
    assert warehouses(again) == groups
    torch.testing.assert_close(again.eval()(x), y)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert warehouses(twin) == groups
        assert torch.equal(twin(x), y)
    restored = condconv.revert(net, discard_training=True).state_dict()
    assert all(torch.equal(restored[key], value) for key, value in static.items())


def test_a_change_of_the_warehouse_is_a_change_of_each_of_its_layers() -> None:
    net, x = condconv.convert(network(), "kernel_warehouse", targets="layer3", input_size=SIZE), torch.randn(2, *SIZE)
    layers = dict(conditional_layers(net))
    before = {name: layer.to_static(layer.bank.identity).weight for name, layer in layers.items()}
    optimizer = torch.optim.SGD(stirred(net).train().parameters(), lr=1.0)
    net(x).square().mean().backward()
    optimizer.step()
    for name, layer in layers.items():
        assert not torch.equal(layer.to_static(layer.bank.identity).weight, before[name])
    with pytest.raises(condconv.ConversionError, match="layer3.0.conv1, layer3.0.conv2"):
        condconv.revert(net)


def test_collapsed_and_folded_it_is_a_network_of_its_own() -> None:
    net, x = condconv.convert(network(), "kernel_warehouse", targets="layer", input_size=SIZE), torch.randn(4, *SIZE)
    y = stirred(net)(x).detach()
    form = condconv.optimize_for_inference(net)
    assert warehouses(form) == warehouses(net)
    torch.testing.assert_close(form(x), y, atol=1e-4, rtol=1e-4)
    with condconv.record_routing(net) as routing:
        net(x[:1])
    static = condconv.collapse(net, [x[:1]])
    assert set(routing) == {name for names in warehouses(net).values() for name in names}
    torch.testing.assert_close(static(x[:1]), y[:1], atol=1e-4, rtol=1e-4)
    with pytest.raises(condconv.ConversionError, match=r"layer1.0.conv1: a warehouse has no inference form .*int8"):
        condconv.optimize_for_inference(net, experts="int8")


def test_which_layers_share_can_be_said() -> None:
    net = condconv.convert(
        network(), "kernel_warehouse", targets="layer", init="fresh", budget="1/2",
        warehouses={"early": "layer[12]"}, input_size=SIZE,
    )  # fmt: skip
    groups = warehouses(net)
    early = groups.pop("layer1.0.conv1")
    assert all(name.startswith(("layer1", "layer2")) for name in early) and len(early) > 3
    assert all(len(names) == 1 for names in groups.values()) and groups
    banks: list[Any] = [layer.bank for _, layer in conditional_layers(net)]
    assert all(isinstance(bank, WarehouseBank) for bank in banks)
    held = sum(parameter.numel() for parameter in {bank.warehouse.cells for bank in banks})
    assert held == pytest.approx(sum(torch.empty(bank.kernel_shape, device="meta").numel() for bank in banks) / 2, 0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warehouses": "block"}, r"plan: warehouses='block' is not a way to put layers together"),
        ({"warehouses": {"a": "layer1", "b": "conv1"}}, r"puts layer1.0.conv1 into 'a' and 'b'"),
        ({"budget": "3"}, r"layer1.0.conv1: budget='3' .*'1/4'"),
        ({"budget": "1/2"}, r"plan: .*needs a cell for each of a kernel's cells: a budget of at least 1"),
        ({"num_experts": 4}, r"num_experts=4"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(condconv.CondConvError, match=message):
        condconv.plan(network(), "kernel_warehouse", targets="layer", input_size=SIZE, **arguments)


def test_channels_without_a_common_divisor_are_skipped_with_the_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 9, 3), nn.Conv2d(9, 8, 3))
    planned = condconv.plan(net, "kernel_warehouse", targets="[012]", warehouses={"a": "[12]"}, input_size=SIZE)
    skipped = {layer.name: layer.why for layer in planned.layers if not layer.converted}
    assert set(skipped) == {"1", "2"}
    assert "have 8, 9 output channels, which have no common divisor" in skipped["1"]


def test_a_layer_that_is_too_dear_has_no_part_in_its_warehouse() -> None:
    whole = condconv.plan(network(), "kernel_warehouse", targets="layer", input_size=SIZE)
    limit = sorted(layer.overhead for layer in whole.layers if layer.overhead is not None)[-1] * 0.99
    planned = condconv.plan(network(), "kernel_warehouse", targets="layer", input_size=SIZE, max_overhead=limit)
    assert 0 < len(planned.converted) < len(whole.converted)
    made = planned.apply()
    assert count(made, SIZE).params == planned.params_after
    assert [name for names in warehouses(made).values() for name in names] == list(dict(conditional_layers(made)))


def test_a_row_takes_its_budget_and_starts_from_its_twin(tmp_path: Path) -> None:
    name, x = "kernel_warehouse_mobilenetv2_050", torch.randn(2, 3, 64, 64)
    twin = condconv.static_twin(name, num_classes=5, budget="2").eval()
    expected = twin(x).detach()
    double = condconv.models.upcycle(name, twin, budget="2").eval()
    torch.testing.assert_close(double(x), expected, atol=1e-4, rtol=1e-4)
    condconv.save_pretrained(stirred(double), tmp_path / "double")
    again = condconv.from_pretrained(tmp_path / "double").eval()
    assert warehouses(again) == warehouses(double) and len(warehouses(double)) == 19
    torch.testing.assert_close(again(x), double(x))
    with torch.device("meta"):
        half = condconv.create_model("kernel_warehouse_resnet18", budget="1/2")
        static = condconv.static_twin("kernel_warehouse_resnet18")
    assert sum(p.numel() for p in half.parameters()) < 0.65 * sum(p.numel() for p in static.parameters())


def test_exported_compiled_and_traced_all_layers_read_the_same_cells() -> None:
    torch._dynamo.reset()
    net = stirred(condconv.convert(network(), "kernel_warehouse", targets="layer3", input_size=SIZE))
    x = torch.randn(3, *SIZE)
    expected = net(x).detach()
    program = torch.export.export(net, (torch.randn(2, *SIZE),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    held = [key for key in program.state_dict if key.endswith("cells")]
    assert held == ["layer3.0.conv1.bank.warehouse.cells"] and not any("cells" in name for name in program.constants)
    torch.testing.assert_close(program.module()(x), expected, atol=1e-5, rtol=1e-5)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), expected, atol=1e-5, rtol=1e-5)


def test_reused_kernels_are_those_of_the_cells() -> None:
    net = stirred(condconv.convert(network(), "kernel_warehouse", targets="layer3", input_size=SIZE))
    x = torch.randn(1, *SIZE)
    with torch.no_grad(), condconv.reuse_kernels(net, tolerance=0.0) as reuse:
        first, second = net(x), net(x)
    assert torch.equal(first, second) and reuse.share() == 0.5


def test_the_schedule_moves_the_gates_from_the_own_cells_to_the_routers() -> None:
    net, x = condconv.convert(network(), "kernel_warehouse", targets="layer3", init="fresh"), torch.randn(2, *SIZE)
    schedule = condconv.RoutingSchedule(net, steps=4)
    own = {name: layer.bank.identity for name, layer in conditional_layers(net)}
    with condconv.record_routing(net) as routing:
        net(x)
    assert schedule.value == 1.0
    assert all(torch.equal(routing[name], own[name].expand(2, -1)) for name in own)
    for _ in range(4):
        schedule.step()
    with condconv.record_routing(net) as routing:
        net(x)
    for name, layer in conditional_layers(net):
        by_cell = routing[name].unflatten(1, (layer.bank.slices.mixtures, -1))
        assert float(by_cell.abs().sum(dim=2).max()) < 1 and float(by_cell.min()) < 0
        assert not torch.allclose(routing[name][0], routing[name][1])
