"""Layers, geometries and networks that the contract is checked on; everything is drawn from the registries."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.banks import DenseBank
from condconv.coefficients import MIXING
from condconv.execution import refusal as why_not
from condconv.execution import strategies, watch_execution
from condconv.layers import ConditionalLayer, Design
from condconv.variants import variants


def _is_mixture(name: str) -> bool:
    """Whether all layers of a variant need the same coefficients, so that any of them may share a router."""
    layer = next(layer for layer in variants[name].layers if layer.static_type is nn.Conv2d)
    return cast(Any, layer)(8, 8, 3, device="meta").slices.names == (MIXING,)


MIXTURES = [name for name in variants if _is_mixture(name)]
"""The variants that are n whole kernels and n scalars, and nothing else."""
LAYERS = [pytest_layer for name in MIXTURES for pytest_layer in variants[name].layers]
OTHERS = [pytest_layer for name in variants if name not in MIXTURES for pytest_layer in variants[name].layers]
CONVOLUTIONS = [layer for layer in LAYERS if hasattr(layer, "rank")]
STRATEGIES = strategies.names()
TWO_D = [layer for layer in LAYERS if layer.static_type is nn.Conv2d]


def layer_of(variant: str, static: type[nn.Module]) -> Any:
    """The class of a variant that replaces a static layer."""
    return next(layer for layer in variants[variant].layers if layer.static_type is static)


def derived(design: Design) -> bool:
    """Whether a variant's bank computes what the dense one does: what compilers make of that, faster tests ask."""
    bank: Any = design.bank
    return isinstance(bank, type) and bank is not DenseBank and issubclass(bank, DenseBank)


def compiled(layers: list[Any], *fast: type[nn.Module]) -> Any:
    """Layers for what a compiler takes long for: those that replace others than the `fast` ones are slow tests."""
    slow = [one.static_type not in fast or derived(one.design) for one in layers]
    marked = [pytest.param(one, marks=pytest.mark.slow if it else ()) for one, it in zip(layers, slow, strict=True)]
    return pytest.mark.parametrize("cls", marked, ids=name_of)


def shared_router(members: Any, channels: int) -> Any:
    """The variant's router for layers that share one, which sees that many channels."""
    site = dataclasses.replace(members[0].site, in_channels=channels)
    return members[0].default_router(site, members[0].slices)


def name_of(thing: Any) -> str:
    """A readable test id."""
    return getattr(thing, "__name__", str(thing))


def example_input(cls: type[ConditionalLayer], batch: int, channels: int = 8, size: int = 6, **kwargs: Any) -> Tensor:
    """A random input for a layer class."""
    if cls.static_type is nn.Linear:
        return torch.randn(batch, 5, channels, **kwargs)
    return torch.randn(batch, channels, *[size] * cls.rank, **kwargs)


def example_layer(cls: type[ConditionalLayer], channels: int = 8, **kwargs: Any) -> Any:
    """A small layer of a class."""
    if cls.static_type is nn.Linear:
        return cls(channels, 12, **kwargs)
    return cls(channels, 12, 3, padding=1, **kwargs)


def refusal(layer: ConditionalLayer, x: Tensor, strategy: str) -> str | None:
    """Why a strategy cannot serve a layer (its dtype, geometry or device), or None."""
    seen: list[Any] = []
    with torch.no_grad(), watch_execution(lambda _, x, lowered, geometry: seen.append((x, lowered, geometry))):
        layer(x)
    return why_not(strategy, *seen[0])


def serving(layer: ConditionalLayer, x: Tensor) -> list[str]:
    """The strategies that can serve a layer: the reference, and at least one other, or nothing would be compared."""
    found = [strategy for strategy in STRATEGIES if refusal(layer, x, strategy) is None]
    assert "reference" in found and len(found) > 1, found
    return found


@st.composite
def geometries(draw: st.DrawFn, cls: Any) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Constructor arguments of a convolution class, and a spatial size that its kernel fits into."""
    rank, transposed = cls.rank, cls.transposed
    groups = draw(st.sampled_from([1, 1, 2, 3, "depthwise"]))
    in_channels = draw(st.sampled_from([3, 4, 6])) if groups == "depthwise" else draw(st.integers(1, 3))
    if groups == "depthwise":
        groups, out_channels = in_channels, in_channels * draw(st.integers(1, 2))
    else:
        in_channels, out_channels = in_channels * groups, draw(st.integers(1, 3)) * groups

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    arguments: dict[str, Any] = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": kernel,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "num_experts": draw(st.integers(1, 4)),
    }
    if transposed:
        arguments["padding"] = each(0, 1)
        most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        arguments["output_padding"] = tuple(draw(st.integers(0, m)) for m in most)
    else:
        arguments["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
        padding = draw(st.sampled_from(["number", "number", "same", "valid"]))
        if padding == "same":
            arguments["stride"] = (1,) * rank
        arguments["padding"] = each(0, 2) if padding == "number" else padding
    size = tuple(draw(st.integers(d * (k - 1) + 3, d * (k - 1) + 5)) for k, d in zip(kernel, dilation, strict=True))
    return arguments, size


def static_output(layer: Any, x: Tensor, coefficients: Tensor) -> Tensor:
    """What the definition says: mix one kernel for each example here, and let `torch.nn.functional` convolve it."""
    outputs = []
    for example, alpha in zip(x, coefficients, strict=True):
        weight = sum(a * w for a, w in zip(alpha, layer.weight, strict=True))
        bias = None if layer.bias is None else sum(a * b for a, b in zip(alpha, layer.bias, strict=True))
        outputs.append(_apply(layer, example.unsqueeze(0), weight, bias))
    return torch.cat(outputs)


def _apply(layer: Any, x: Tensor, weight: Any, bias: Any) -> Tensor:
    if layer.static_type is nn.Linear:
        return F.linear(x, weight, bias)
    if layer.transposed:
        return F.conv_transpose2d(
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[layer.rank]
    padding = layer.padding
    if layer.padding_mode != "zeros":
        sides: list[int] = []
        for i in reversed(range(layer.rank)):
            total = layer.dilation[i] * (layer.kernel_size[i] - 1)
            same, number = (total // 2, total - total // 2), (0, 0) if padding == "valid" else (padding[i], padding[i])
            sides += same if padding == "same" else number
        x, padding = F.pad(x, sides, mode=layer.padding_mode), 0
    return convolve(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


class Block(nn.Module):
    """An inverted bottleneck of conditional layers that borrow their coefficients."""

    def __init__(self, layer: Any, channels: int, num_experts: int, checkpoint: Any = None) -> None:
        super().__init__()
        options = {"num_experts": num_experts, "router": False, "bias": False}
        self.expand = layer(channels, 2 * channels, 1, **options)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.depthwise = layer(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, **options)
        self.project = layer(2 * channels, channels, 1, **options)
        self.checkpoint = checkpoint

    def inner(self, h: Tensor) -> Tensor:
        """The part that a checkpoint recomputes."""
        return torch.relu(self.norm(self.depthwise(h)))

    def forward(self, x: Tensor) -> Tensor:
        """Residual block."""
        h = torch.relu(self.expand(x))
        h = self.inner(h) if self.checkpoint is None else self.checkpoint(self.inner, h)
        return x + self.project(h)
