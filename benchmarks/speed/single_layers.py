"""One layer of the training form, coefficients given, beside the static convolution of its shape and timm's layer.

    python -m benchmarks.speed.single_layers     writes benchmarks/results/single_layers.csv

Training steps (forward and backward, gradients of input, coefficients and experts) of layers as small networks have
them: 3x3 with 16 to 64 channels at 4 to 56 positions a side, 1x1 and depthwise ones, batches 16 to 128. Forward passes
of shapes that no table has, batch 1 included. Eight experts. Each instruction set of this CPU is measured in processes
of their own, with one thread. The static convolution and timm's layer run in both layouts, and each row is
relative to the faster layout of either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.layers import CondConv2d as TimmCondConv2d
from torch import Tensor, nn

import condconv
from benchmarks.speed.instructions import answer, available, held_to, task_of
from benchmarks.speed.machine import Quiet, description
from benchmarks.speed.planner_table import LAYOUTS
from benchmarks.speed.results import MACHINE, arguments, table, wanted
from condconv.layers.base import last_strategy
from condconv.timing import Call, Timing, measure

EXPERTS = 8
THREADS = (1,)
COLUMNS = (
    "cell", "instructions", "work", "kind", "kernel_size", "in_channels", "out_channels", "size", "batch", "groups",
    "stride", "layout", "strategy", "static_ms", "timm_ms", "ours_ms", "ratio", "ratio_p10", "ratio_p90", "timm_ratio",
    "over_timm", "macs_ratio", *MACHINE,
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A layer at work; `size` × `size` inputs."""

    work: str
    kernel: int
    in_channels: int
    out_channels: int
    size: int
    batch: int
    groups: int = 1
    stride: int = 1

    @property
    def kind(self) -> str:
        """As the planner calls it."""
        return "depthwise" if self.groups > 1 else "pointwise" if self.kernel == 1 else "dense"

    @property
    def name(self) -> str:
        """A readable name, unique among the cells."""
        channels = f"{self.in_channels}-{self.out_channels}"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.work} {self.kind} {self.kernel}x{self.kernel}{stride} {channels} @{self.size} B{self.batch}"

    @property
    def macs_ratio(self) -> float:
        """Multiply-adds relative to the static layer: mixing costs n for each weight, in training four times that."""
        positions = (-(-self.size // self.stride)) ** 2
        return 1 + EXPERTS / positions * (4 / 3 if self.work == "training" else 1)


def cells() -> Iterator[Cell]:
    """All cells."""
    for channels, size, batch in (
        (16, 56, 16), (16, 32, 64), (16, 16, 128), (32, 56, 16), (32, 28, 64), (32, 14, 64), (32, 8, 128), (48, 14, 64),
        (64, 28, 16), (64, 14, 64), (64, 7, 128), (64, 4, 128),
    ):  # fmt: skip
        yield Cell("training", 3, channels, channels, size, batch)
    yield Cell("training", 3, 16, 32, 16, 64)
    for wide, narrow, size, batch in (
        (16, 96, 32, 16), (64, 64, 28, 16), (32, 192, 14, 64), (192, 32, 14, 64), (128, 128, 14, 64),
        (256, 256, 7, 128),
    ):  # fmt: skip
        yield Cell("training", 1, wide, narrow, size, batch)
    for kernel, channels, size, batch, stride in (
        (3, 32, 56, 16, 1), (3, 64, 28, 16, 1), (3, 192, 14, 64, 1), (5, 192, 14, 64, 2), (5, 384, 7, 128, 1),
    ):  # fmt: skip
        yield Cell("training", kernel, channels, channels, size, batch, channels, stride)
    for kernel, wide, narrow, size, batch in (
        (3, 40, 72, 20, 1), (3, 88, 56, 27, 4), (3, 200, 136, 9, 8), (3, 24, 24, 45, 16), (1, 88, 120, 13, 1),
        (1, 300, 180, 9, 8), (1, 56, 328, 21, 16), (1, 520, 104, 11, 32),
    ):  # fmt: skip
        yield Cell("forward", kernel, wide, narrow, size, batch)
    for kernel, channels, size, batch in ((3, 200, 19, 1), (5, 360, 11, 8), (3, 136, 27, 4), (5, 88, 21, 16)):
        yield Cell("forward", kernel, channels, channels, size, batch, channels)


QUICK = (Cell("training", 3, 8, 8, 5, 2), Cell("forward", 1, 8, 16, 3, 2))


def calls(cell: Cell) -> tuple[dict[str, Call], condconv.CondConv2d]:
    """What runs, by contender and layout, and our layer."""
    arguments = (cell.in_channels, cell.out_channels, cell.kernel)
    shape: dict[str, Any] = {"stride": cell.stride, "padding": cell.kernel // 2, "groups": cell.groups}
    static = nn.Conv2d(*arguments, bias=False, **shape)
    ours = condconv.CondConv2d(*arguments, bias=False, num_experts=EXPERTS, router=False, **shape)
    timm = TimmCondConv2d(*arguments, num_experts=EXPERTS, **shape)
    coefficients = torch.rand(cell.batch, EXPERTS, requires_grad=True)
    found: dict[str, Call] = {}
    for layout, form in LAYOUTS.items():
        x = torch.randn(cell.batch, cell.in_channels, cell.size, cell.size).contiguous(memory_format=form)
        kernels = static.weight.detach().contiguous(memory_format=form).requires_grad_()

        def twin(x: Tensor, kernels: Tensor = kernels) -> Tensor:
            return nn.functional.conv2d(x, kernels, None, cell.stride, cell.kernel // 2, 1, cell.groups)

        forwards: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {
            "static": (twin, [kernels]),
            "ours": (lambda x: ours(x, coefficients), [coefficients, ours.weight]),
            "timm": (lambda x: timm(x, coefficients), [coefficients, timm.weight]),
        }
        for name, (forward, leaves) in forwards.items():
            found[f"{name} {layout}"] = step(forward, x, leaves) if cell.work == "training" else inference(forward, x)
    return found, ours


def step(forward: Callable[[Tensor], Tensor], image: Tensor, leaves: Sequence[Tensor]) -> Call:
    """Forward and backward."""
    x = image.detach().requires_grad_()
    grad = torch.randn_like(forward(x).detach())
    return lambda: torch.autograd.grad(forward(x), (x, *leaves), grad)


def inference(forward: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    """Forward without gradients."""

    @torch.no_grad()
    def call() -> Tensor:
        return forward(x)

    return call


def rows(cell: Cell, instructions: str, quick: bool) -> Iterator[dict[str, object]]:
    """Measure one cell: a row for each layout of ours."""
    contenders, layer = calls(cell)
    timings = measure(contenders, quick=quick)
    static, timm = (faster(timings, name) for name in ("static", "timm"))
    for layout in LAYOUTS:
        ours = timings[f"ours {layout}"]
        contenders[f"ours {layout}"]()
        ratio = ours.over(static)
        yield {
            "cell": f"{cell.name} {layout} {instructions} {torch.get_num_threads()} threads",
            "instructions": instructions, "work": cell.work, "kind": cell.kind, "kernel_size": cell.kernel,
            "in_channels": cell.in_channels, "out_channels": cell.out_channels, "size": cell.size, "batch": cell.batch,
            "groups": cell.groups, "stride": cell.stride, "layout": layout, "strategy": last_strategy(layer),
            "static_ms": f"{static.ms.median:.4g}", "timm_ms": f"{timm.ms.median:.4g}",
            "ours_ms": f"{ours.ms.median:.4g}", "ratio": f"{ratio.median:.3f}", "ratio_p10": f"{ratio.p10:.3f}",
            "ratio_p90": f"{ratio.p90:.3f}", "timm_ratio": f"{timm.over(static).median:.3f}",
            "over_timm": f"{ours.over(timm).median:.3f}", "macs_ratio": f"{cell.macs_ratio:.3f}", **description(),
        }  # fmt: skip


def faster(timings: dict[str, Timing], name: str) -> Timing:
    """A contender in the faster of the two layouts."""
    return min((timings[f"{name} {layout}"] for layout in LAYOUTS), key=lambda timing: timing.ms.median)


def main(words: Sequence[str] | None = None) -> None:
    """Measure all cells, or those that --only names; --threads has no effect."""
    given = arguments("single_layers", __doc__, words)
    quiet = Quiet(0 if given.quick else 2)
    chosen = [asdict(cell) for cell in wanted(given, QUICK if given.quick else cells())]
    with table(given.out / "single_layers.csv", COLUMNS) as add:
        for instructions in available():
            for threads in (1,) if given.quick else THREADS:
                task = {"instructions": instructions, "threads": threads, "quick": given.quick, "cells": chosen}
                for row in held_to(instructions, "benchmarks.speed.single_layers", task):
                    add({**row, **quiet.columns()})
                    found = f"{row['strategy']:<13} × {row['ratio']}, timm {row['timm_ratio']}"
                    print(f"{row['cell']:<72} {found}", flush=True)


if __name__ == "__main__":
    if task := task_of(sys.argv[1:]):
        torch.set_num_threads(task["threads"])
        for one in task["cells"]:
            for found in rows(Cell(**one), task["instructions"], task["quick"]):
                answer(found)
    else:
        main(sys.argv[1:])
