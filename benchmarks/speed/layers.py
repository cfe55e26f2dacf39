"""One layer with given coefficients (no router) beside the static convolution of its shape and timm's layer.

    python -m benchmarks.speed.layers     writes benchmarks/results/layers.csv

Ours runs in the inference form, its experts stored as f32, bf16 or int8, with the strategy that the planner chooses and
with each one pinned (f32). The static twin runs in channels_last, as ours do; in the contiguous layout it has a row of
its own. timm's layer runs in both layouts, and the faster one counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from timm.layers import CondConv2d as TimmCondConv2d
from torch import Tensor, nn
from torch.nn import functional as F

import condconv
from benchmarks.speed.planner_table import STRATEGIES
from benchmarks.speed.results import LIMITS, MACHINE, TIMING, arguments, run_cells, timing_columns
from benchmarks.speed.roofline import Roofline
from condconv.execution import AUTO, watch_execution
from condconv.inference.form import ExpertStorage
from condconv.timing import Call, Timing, measure

COLUMNS = (
    "cell", "group", "kernel_size", "in_channels", "out_channels", "size", "batch", "groups", "experts", "active",
    "contender", "storage", "asked", "strategy", *TIMING, *LIMITS, *MACHINE,
)  # fmt: skip
STORAGE_BYTES: dict[str, int] = {"f32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Cell:
    """A layer at work: kernel k×k, `size` × `size` positions, stride 1, coefficients given."""

    group: str
    kernel: int
    in_channels: int
    out_channels: int
    size: int
    batch: int
    groups: int = 1
    experts: int = 8
    active: int | None = None
    """How many coefficients of an example are not 0; None for all."""

    @property
    def name(self) -> str:
        """A readable name, unique among the cells."""
        shape = f"{self.kernel}x{self.kernel} {self.in_channels}-{self.out_channels} @{self.size}"
        kind = "depthwise " if self.groups > 1 and self.group != "depthwise" else ""
        active = "" if self.active is None else f" {self.active} active"
        return f"{self.group}: {kind}{shape} B{self.batch} n{self.experts}{active}"

    @property
    def kernel_macs(self) -> int:
        """Elements of one kernel."""
        return self.out_channels * self.in_channels // self.groups * self.kernel**2

    @property
    def macs(self) -> tuple[int, int]:
        """Multiply-adds of the batch: convolution, mixing."""
        mixed = self.experts if self.active is None else self.active
        return self.batch * self.kernel_macs * self.size**2, self.batch * mixed * self.kernel_macs


def cells() -> Iterator[Cell]:
    """All cells, those with a target first."""
    for batch in (1, 8, 32):
        yield Cell("dense", 1, 512, 512, 14, batch)
    for batch in (8, 32):
        yield Cell("dense", 1, 1024, 1024, 7, batch)
    yield Cell("dense", 1, 192, 1152, 7, 32)
    yield Cell("dense", 1, 112, 672, 14, 32)
    for channels, size in ((256, 14), (512, 7)):
        for batch in (1, 8, 32):
            yield Cell("dense", 3, channels, channels, size, batch)
    for kernel, channels, size in ((5, 672, 14), (5, 1152, 7), (3, 1152, 7), (3, 480, 14)):
        for batch in (1, 8, 32):
            yield Cell("depthwise", kernel, channels, channels, size, batch, groups=channels)
    for kernel, channels, size, groups in ((1, 512, 14, 1), (3, 256, 14, 1), (5, 672, 14, 672)):
        for experts in (1, 2, 4, 8, 16, 32, 64):
            yield Cell("experts", kernel, channels, channels, size, 1, groups, experts)
        for batch in (1, 2, 4, 8, 16, 32, 64):
            yield Cell("batch", kernel, channels, channels, size, batch, groups)
    for kernel, channels, size in ((1, 1024, 7), (3, 512, 7)):
        for active in (8, 4, 2):
            yield Cell("active", kernel, channels, channels, size, 1, active=active)


QUICK = (
    Cell("dense", 1, 8, 16, 3, 2),
    Cell("depthwise", 3, 8, 8, 3, 2, groups=8),
    Cell("active", 1, 8, 8, 3, 1, 1, 8, 2),
)


class Given(nn.Module):
    """A conditional convolution whose coefficients the caller gives."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.layer = condconv.CondConv2d(
            cell.in_channels, cell.out_channels, cell.kernel, padding=cell.kernel // 2, groups=cell.groups, bias=False,
            num_experts=cell.experts, router=False,
        )  # fmt: skip

    def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """X (B, I, H, W), coefficients (B, n) → (B, O, H, W)."""
        return self.layer(x, coefficients)


def coefficients_of(cell: Cell) -> Tensor:
    """Coefficients in (0, 1), all but `active` of each example exactly 0."""
    coefficients = torch.rand(cell.batch, cell.experts) + 0.01
    if cell.active is not None:
        order = torch.rand_like(coefficients).argsort(1)
        coefficients.scatter_(1, order[:, cell.active :], 0.0)
    return coefficients


@dataclass(frozen=True)
class Ours:
    """One of our contenders: how the experts are stored, which strategy was asked for, and which one ran."""

    storage: str
    asked: str
    strategy: str
    call: Call


def ours(cell: Cell, x: Tensor, coefficients: Tensor) -> Iterator[Ours]:
    """The inference form in each storage; every strategy for f32 in the cells that have a target."""
    model = Given(cell).eval()
    for storage in get_args(ExpertStorage):
        optimized = condconv.optimize_for_inference(model, experts=storage)
        for asked in [AUTO, *STRATEGIES] if storage == "f32" and cell.group in ("dense", "depthwise") else [AUTO]:

            def call(model: nn.Module = optimized, asked: str = asked) -> Tensor:
                with condconv.use_strategy(asked):
                    return model(x, coefficients)

            ran: list[str] = []
            try:
                with watch_execution(lambda strategy, *_, ran=ran: ran.append(strategy)):
                    call()
            except condconv.StrategyError:
                continue
            yield Ours(storage, asked, " ".join(dict.fromkeys(ran)), call)


def others(cell: Cell, x: Tensor, coefficients: Tensor) -> dict[str, Call]:
    """The static convolution and timm's layer, each in both memory layouts."""
    kernel = torch.randn(cell.out_channels, cell.in_channels // cell.groups, cell.kernel, cell.kernel)
    padding = cell.kernel // 2
    timm = TimmCondConv2d(
        cell.in_channels, cell.out_channels, cell.kernel, padding=padding, groups=cell.groups, num_experts=cell.experts
    ).eval()
    calls: dict[str, Call] = {}
    for layout, form in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
        laid, weight = x.contiguous(memory_format=form), kernel.contiguous(memory_format=form)
        calls[f"static {layout}"] = lambda laid=laid, weight=weight: F.conv2d(  # type: ignore[misc]
            laid, weight, None, 1, padding, 1, cell.groups
        )
        calls[f"timm {layout}"] = lambda laid=laid: timm(laid, coefficients)  # type: ignore[misc]
    return calls


def faster_timm(timings: dict[str, Timing]) -> str:
    """The layer of timm in the faster of the two layouts."""
    return min((name for name in timings if name.startswith("timm")), key=lambda name: timings[name].ms.median)


@torch.no_grad()
def rows(cell: Cell, given: argparse.Namespace, roofline: Roofline) -> Iterator[dict[str, object]]:
    """Measure one cell: a row for the static convolution, for timm's and for each of ours."""
    x = torch.randn(cell.batch, cell.in_channels, cell.size, cell.size).contiguous(memory_format=torch.channels_last)
    coefficients = coefficients_of(cell)
    mine = {f"ours {our.storage} {our.asked}": our for our in ours(cell, x, coefficients)}
    calls = {name: our.call for name, our in mine.items()} | others(cell, x, coefficients)
    timings = measure(calls, quick=given.quick)
    static = "static channels_last"
    convolution, mixing = cell.macs
    static_limit = roofline.ms(convolution, 4 * cell.kernel_macs)
    for name in (static, "static contiguous", faster_timm(timings), *mine):
        our = mine.get(name)
        read = cell.experts if cell.active is None else min(cell.experts, cell.active * cell.batch)
        bank = read * cell.kernel_macs * STORAGE_BYTES[our.storage if our else "f32"]
        is_static = name.startswith("static")
        limit = static_limit if is_static else roofline.ms(convolution + mixing, bank)
        yield {
            "cell": cell.name, "group": cell.group, "kernel_size": cell.kernel, "in_channels": cell.in_channels,
            "out_channels": cell.out_channels, "size": cell.size, "batch": cell.batch, "groups": cell.groups,
            "experts": cell.experts, "active": cell.active or "",
            "contender": name if name == "static contiguous" else name.split()[0],
            "storage": our.storage if our else "f32", "asked": our.asked if our else "",
            "strategy": our.strategy if our else name.split()[1], **timing_columns(timings[name], timings[static]),
            "macs_ratio": f"{1 if is_static else 1 + mixing / convolution:.3f}", "roofline_ms": f"{limit:.4f}",
            "roofline_ratio": f"{limit / static_limit:.3f}", **roofline.columns(bank),
        }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Measure all cells, or those that --only names."""
    given = arguments("layers", __doc__, words)
    run_cells(given, "layers.csv", COLUMNS, QUICK if given.quick else cells(), rows)


if __name__ == "__main__":
    main(sys.argv[1:])
