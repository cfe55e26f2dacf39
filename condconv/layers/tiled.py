"""Routing by tile: an image is cut into g x g tiles, and each has its own kernel.

    y[b] in tile t = W(x[b] in t)[b, t] * x[b] + b(x[b] in t)[b, t]

One kernel for an image of many objects has to serve them all; a tile has fewer. The convolution of a tile reads over
its edges (the halo), so that where all tiles have the same coefficients the result is that of the plain layer. Mixing
and the router's linear layers cost g² times as much, the convolution and the pooling the same.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.arguments import integer
from condconv.errors import ArgumentError, ShapeError
from condconv.layers.base import ConditionalLayer
from condconv.layers.conv import ConditionalConv2d
from condconv.routers import Router, valid_area
from condconv.routers.valid_area import area_of

Model = TypeVar("Model", bound=nn.Module)


class TiledConv2d(nn.Module):
    """A conditional convolution with its own router, run tile by tile; see the module's docstring.

    Args:
        layer: it becomes a part of this one and loses its router and its padding, which are looked after here.
        tiles: g; an image with fewer output rows or columns has fewer tiles.

    Raises:
        ArgumentError: the layer shares its routing, or g is below 1.
    """

    def __init__(self, layer: ConditionalConv2d, tiles: int = 1) -> None:
        super().__init__()
        self.tiles = integer("TiledConv2d", "tiles", tiles, 1)
        if layer.router is None:
            raise ArgumentError(
                f"{layer.path or type(layer).__name__}: has no router of its own, so that tiles cannot be routed; "
                "convert with share=None (--share none)"
            )
        self.router: Router = layer.router
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        before, after = layer._padding_amounts()
        self.pad = [before[1], after[1], before[0], after[0]]
        self.layer = layer
        layer.router = None
        layer.padding, layer._prepad = (0, 0), []
        layer.geometry = dataclasses.replace(layer.geometry, padding=(0, 0))
        layer._smallest = tuple(layer._smallest_size(i) for i in range(2))

    def forward(self, x: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """Convolve each tile of each example with its own kernel.

        Args:
            x: (B, I, H, W), or (I, H, W) for one example.
            coefficients: (B, D, g, g); computed by the router where None.

        Raises:
            ShapeError: coefficients of another shape.
        """
        if x.dim() == 3:
            return self.forward(x[None], coefficients)[0]
        layer, geometry = self.layer, self.layer.geometry
        padded = F.pad(x, self.pad, mode=self.padding_mode) if any(self.pad) else x
        output = geometry.output_size(padded.shape[2:], layer.kernel_size)
        edges = [_edges(size, self.tiles) for size in output]
        wanted = (x.shape[0], layer.num_coefficients, len(edges[0]), len(edges[1]))
        if coefficients is not None and coefficients.shape != wanted:
            raise ShapeError(
                f"{layer.path or 'TiledConv2d'}: coefficients of shape {tuple(coefficients.shape)}; for an input of "
                f"{tuple(x.shape)} they must have shape {wanted}: examples, coefficients, tiles down and across"
            )
        bands = []
        for row, (top, bottom) in enumerate(edges[0]):
            band = []
            for column, (left, right) in enumerate(edges[1]):
                if coefficients is None:
                    own = self._route(x, (top, left), (bottom, right), output)
                else:
                    own = coefficients[..., row, column]
                rows, columns = (
                    slice(first * s, (last - 1) * s + d * (k - 1) + 1)
                    for first, last, s, d, k in zip(
                        (top, left), (bottom, right), geometry.stride, geometry.dilation, layer.kernel_size, strict=True
                    )
                )
                band.append(layer(padded[:, :, rows, columns], own))
            bands.append(torch.cat(band, dim=3))
        return torch.cat(bands, dim=2)

    def _route(self, x: Tensor, start: tuple[int, int], end: tuple[int, int], output: tuple[int, ...]) -> Tensor:
        """The coefficients (B, D) of the tile between two corners, in output positions; its router sees no halo."""
        first, last = [], []
        for size, s, begin, stop, most in zip(x.shape[2:], self.layer.geometry.stride, start, end, output, strict=True):
            first.append(min(begin * s, size - 1))
            last.append(size if stop == most else max(first[-1] + 1, min(stop * s, size)))
        area, tile = area_of(x), x[:, :, first[0] : last[0], first[1] : last[1]]
        if area is None:
            alone: Tensor = self.router(tile)
            return alone
        sides = (last[0] - first[0], last[1] - first[1])
        filled = [
            (valid - begin).clamp(1, side) for valid, begin, side in zip(area.on_map(x), first, sides, strict=True)
        ]
        with valid_area(torch.stack(filled, dim=1), sides):
            inside: Tensor = self.router(tile)
        return inside

    def extra_repr(self) -> str:
        """Show g."""
        return f"tiles={self.tiles}"


def route_by_tile(model: Model, tiles: int) -> Model:
    """Let every conditional 2-d convolution of a model route by tile, in place; `tiles=1` changes nothing.

    Such a model is trained, evaluated and counted as any other; conversion, folding, saving and export refuse it.

    Raises:
        ArgumentError: layers that share their routing, other conditional layers, or none.
    """
    if integer("route_by_tile", "tiles", tiles, 1) == 1:
        return model
    found: dict[str, ConditionalConv2d] = {}
    for name, module in model.named_modules():
        if isinstance(module, ConditionalConv2d) and module.router is not None:
            found[name] = module
        elif isinstance(module, ConditionalLayer):
            convolution = isinstance(module, ConditionalConv2d)
            kind = "has no router of its own" if convolution else "is no 2-d convolution"
            raise ArgumentError(
                f"route_by_tile: {name or 'the model'} {kind}; convert 2-d convolutions alone, with share=None "
                "(--share none), and route by tile once"
            )
    if not found or "" in found:
        raise ArgumentError("route_by_tile: the model has no conditional layer inside it; convert it first")
    for name, layer in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, TiledConv2d(layer, tiles).train(layer.training))
    return model


def _edges(size: int, tiles: int) -> list[tuple[int, int]]:
    """First and last output position of each tile, as equal as may be."""
    number = min(tiles, size)
    return [(size * i // number, size * (i + 1) // number) for i in range(number)]
