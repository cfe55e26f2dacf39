"""Inference of the successors' networks beside their static twins and beside an obvious form of the same equations.

    python -m benchmarks.speed.variants     writes benchmarks/results/variants.csv

ResNet-18 and MobileNetV2 at batch 1 and 32. Ours and the static twin run in the inference form. The obvious form is
what one writes from a paper, in eager PyTorch: every example's kernel is made, and a convolution of B·g groups applies
them; it has our routers, channels_last, and batch norms of its own.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import condconv
from benchmarks.speed.results import MACHINE, TIMING, arguments, run_cells, timing_columns
from benchmarks.speed.roofline import Roofline
from benchmarks.speed.subjects import CHANNELS_LAST, OURS, STATIC, image_batch
from condconv.benchmarking.networks import strategies_of
from condconv.conversion.apply import conditional_layers, replace_layer
from condconv.layers import ConditionalLayer
from condconv.lowered import kernels_of
from condconv.timing import measure

OBVIOUS = "obvious"
COLUMNS = (
    "cell", "variant", "backbone", "batch", "size", "contender", "strategy", *TIMING, "macs_ratio", *MACHINE,
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A network at work."""

    variant: str
    backbone: str
    batch: int
    options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224

    @property
    def name(self) -> str:
        """A readable name, unique among the cells."""
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        return " ".join(filter(None, (self.variant, options, self.backbone, f"B{self.batch} {self.size}")))

    def static(self) -> nn.Module:
        """The static network."""
        torch.manual_seed(0)
        return condconv.create_model(self.backbone).eval()

    def conditional(self) -> nn.Module:
        """The paper's network, or a conversion where the zoo has none."""
        name = f"{self.variant}_{self.backbone}"
        if name in condconv.list_models():
            return condconv.create_model(name, **self.options).eval()
        size = (3, self.size, self.size)
        return condconv.convert(self.static(), self.variant, init="fresh", input_size=size, **self.options)


KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("condconv", {"num_experts": 8}), ("odconv", {}), ("odconv", {"num_experts": 4}), ("dcd", {}), ("weightnet", {}),
    ("squeeze_excite", {}), ("kernel_warehouse", {}), ("kernel_warehouse", {"budget": "4"}),
)  # fmt: skip
CELLS = tuple(
    Cell(variant, backbone, batch, options)
    for backbone in ("resnet18", "mobilenetv2_100")
    for variant, options in KINDS
    for batch in (1, 32)
)
QUICK = (Cell("odconv", "mobilenetv2_050", 2, {"num_experts": 4}, 32),)


class Obvious(nn.Module):
    """A conditional convolution as one writes it from its paper."""

    def __init__(self, layer: ConditionalLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Make each example's kernel, and convolve the batch as B·g groups."""
        layer, (batch, channels, *space) = self.layer, x.shape
        lowered = layer.bank(layer._own_coefficients(x))
        kernels, bias, geometry = kernels_of(lowered, x.dtype), lowered.bias, layer.geometry
        y = F.conv2d(
            x.reshape(1, batch * channels, *space), kernels.flatten(0, 1), None,
            geometry.stride, geometry.padding, geometry.dilation, batch * geometry.groups,
        )  # fmt: skip
        y = y.unflatten(1, (batch, -1)).squeeze(0)
        return y if bias is None else y + bias[:, :, None, None]


def obvious(network: nn.Module) -> nn.Module:
    """The network with its conditional convolutions in the obvious form."""
    made = copy.deepcopy(network)
    for _, layer in list(conditional_layers(made)):
        if layer.geometry.rank == 2:
            made = replace_layer(made, layer, Obvious(layer))
    return made.to(memory_format=CHANNELS_LAST)


@torch.no_grad()
def rows(cell: Cell, given: argparse.Namespace, roofline: Roofline) -> Iterator[dict[str, object]]:
    """Measure one cell: a row for each contender, its ratio being to the static twin."""
    static, ours = cell.static(), cell.conditional()
    size = (3, cell.size, cell.size)
    macs_ratio = condconv.count(ours, size).macs / condconv.count(static, size).macs
    networks = {
        STATIC: condconv.optimize_for_inference(static),
        OURS: condconv.optimize_for_inference(ours),
        OBVIOUS: obvious(ours),
    }
    x = image_batch(cell.batch, cell.size)
    calls = {name: (lambda network=network: network(x)) for name, network in networks.items()}
    timings = measure(calls, 0.06, given.quick, turns=10 if cell.batch == 1 else 4)
    for name, call in calls.items():
        yield {
            "cell": cell.name, "variant": cell.variant, "backbone": cell.backbone, "batch": cell.batch,
            "size": cell.size, "contender": name, "strategy": strategies_of(call),
            **timing_columns(timings[name], timings[STATIC]),
            "macs_ratio": f"{1.0 if name == STATIC else macs_ratio:.3f}",
        }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Measure all cells, or those that --only names."""
    given = arguments("variants", __doc__, words)
    run_cells(given, "variants.csv", COLUMNS, QUICK if given.quick else CELLS, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
