"""Routing by tile: each tile is what the plain layer makes with its coefficients, and nothing is lost at the edges."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.data import IGNORED
from condconv.errors import ArgumentError, ConversionError, ShapeError
from condconv.evaluation.routing import RoutingStatistics, experts_by_layer
from condconv.layers import TiledConv2d, route_by_tile

GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "without padding": {"kernel_size": 3},
    "same": {"kernel_size": 4, "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 4},
    "pointwise": {"kernel_size": 1},
    "oblong": {"kernel_size": (1, 3), "padding": (0, 1), "stride": (1, 2)},
}


def layer_of(geometry: str) -> Any:
    torch.manual_seed(0)
    layer = condconv.CondConv2d(4, 8, num_experts=3, **GEOMETRIES[geometry]).double()
    for parameter in layer.router.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_each_tile_is_the_plain_layers_with_its_coefficients(geometry: str) -> None:
    plain = layer_of(geometry)
    tiled = TiledConv2d(copy.deepcopy(plain), 2)
    x = torch.randn(3, 4, 13, 10, dtype=torch.float64, requires_grad=True)
    coefficients = torch.rand(3, 3, 2, 2, dtype=torch.float64)
    y = tiled(x, coefficients)
    rows, columns = y.shape[2] // 2, y.shape[3] // 2
    expected = torch.empty_like(y)
    for row, down in enumerate((slice(0, rows), slice(rows, None))):
        for column, across in enumerate((slice(0, columns), slice(columns, None))):
            expected[:, :, down, across] = plain(x, coefficients[..., row, column])[:, :, down, across]
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=0)
    gradients = [torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0] for out in (y, expected)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_one_tile_is_the_plain_layer(geometry: str) -> None:
    plain = layer_of(geometry)
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    tiled = TiledConv2d(copy.deepcopy(plain), 1)
    torch.testing.assert_close(tiled(x), plain(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(tiled(x[0]), plain(x[0]), atol=1e-12, rtol=0)


def test_a_tile_is_routed_by_what_is_in_it() -> None:
    tiled = TiledConv2d(layer_of("3x3"), 2)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 6:, 6:] += 5.0
    difference = (tiled(x) - tiled(changed)).abs().amax(dim=(0, 1))
    assert float(difference[4:, 4:].min()) > 0 and float(difference[:4, :4].max()) == 0.0
    # Padding is no part of a tile either.
    with condconv.valid_area([(7, 5)], (8, 8)):
        within, beyond = tiled(x), x.clone()
        beyond[:, :, 7:] = 1e3
        torch.testing.assert_close(tiled(beyond)[:, :, :3, :4], within[:, :, :3, :4])
        torch.testing.assert_close(tiled(beyond)[:, :, :6], within[:, :, :6])


def test_small_maps_have_fewer_tiles_and_coefficients_must_fit() -> None:
    tiled = TiledConv2d(layer_of("3x3"), 4)
    assert tiled(torch.randn(2, 4, 1, 3, dtype=torch.float64)).shape == (2, 8, 1, 3)
    with pytest.raises(ShapeError, match=r"they must have shape \(2, 3, 4, 4\): examples, coefficients, tiles down"):
        tiled(torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64))


def test_the_cost_is_counted() -> None:
    def network() -> nn.Module:
        return nn.Sequential(condconv.CondConv2d(4, 8, 3, padding=1, num_experts=3))

    plain, tiled = condconv.count(network(), (4, 12, 12)), condconv.count(route_by_tile(network(), 2), (4, 12, 12))
    mixing, linear = 3 * 8 * 4 * 9, 4 * 3
    assert tiled.macs - plain.macs == 3 * (mixing + linear)  # four tiles instead of one; pooling is the same


def test_statistics_take_the_mean_of_a_layers_calls() -> None:
    model = route_by_tile(nn.Sequential(condconv.CondConv2d(3, 4, 3, num_experts=2), nn.Flatten()), 2)
    statistics = RoutingStatistics(experts_by_layer(model), 2)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad(), condconv.record_routing(model) as routing:
        model(x)
    expected = routing["0.layer"].unflatten(0, (4, 3)).mean(dim=0)
    statistics.update(routing.parts(3), torch.tensor([1, IGNORED, 0]))
    means = statistics.compute().means["0.layer"]
    torch.testing.assert_close(means, expected[[2, 0]])
    assert routing.parts(5) == {}  # what saw another number of examples saw something else


def test_a_model_is_tiled_or_refused() -> None:
    model = nn.Sequential(condconv.CondConv2d(3, 4, 3, padding=1), nn.ReLU(), condconv.CondConv2d(4, 4, 1))
    assert route_by_tile(model, 1) is model and isinstance(model[0], condconv.CondConv2d)
    route_by_tile(model, 2)
    assert all(isinstance(model[place], TiledConv2d) for place in (0, 2))
    with pytest.raises(ArgumentError, match="0.layer has no router of its own; .*route by tile once"):
        route_by_tile(model, 2)
    x = torch.randn(2, 3, 8, 8)
    with condconv.record_routing(model) as routing:
        model(x)
    assert {name: len(found) for name, found in routing.items()} == {"0.layer": 8, "2.layer": 8}
    refusing = {
        "revert": condconv.revert,
        "optimize_for_inference": condconv.optimize_for_inference,
        "save_pretrained": lambda model: condconv.save_pretrained(model, "somewhere"),
        "export": lambda model: condconv.export(model, "somewhere.pt2", example=x),
    }
    for verb, call in refusing.items():
        with pytest.raises(ConversionError, match=f"{verb}: the model routes by tile"):
            call(model)
    shared = condconv.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), "condconv", share="network")
    with pytest.raises(ArgumentError, match="has no router of its own; .*share=None"):
        route_by_tile(shared, 2)
    with pytest.raises(ArgumentError, match="is no 2-d convolution"):
        route_by_tile(nn.Sequential(condconv.CondLinear(3, 4)), 2)
