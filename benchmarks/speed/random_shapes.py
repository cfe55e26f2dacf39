"""Shapes outside of the planner's table: does its choice keep up with the best strategy, and is the result right?

    python -m benchmarks.speed.random_shapes     writes benchmarks/results/random_shapes.csv

Fifty shapes from a fixed seed, each forward without gradients, and forward and backward: odd sizes and channels,
stride 2, groups, 1 to 4 threads but no more than there are cores, both memory layouts. Every third shape is held to
AVX2, in torch's libraries and in the native operator. The planner's choice takes turns with every strategy pinned, all
of them in the training form; results are compared with the reference in float64. A shape whose ratio exceeds the bound
is measured three times in all, and its run of the median ratio counts.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks.speed.instructions import answer, held_to, task_of
from benchmarks.speed.machine import Quiet, description
from benchmarks.speed.planner_table import LAYOUTS, STRATEGIES
from benchmarks.speed.results import MACHINE, SLOWEST, arguments, table, wanted
from condconv.execution import AUTO, choose, execute, strategies
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture
from condconv.timing import Call, Spread, Timing, measure

SHAPES, SEED = 50, 2
MOST_MACS = 3e8


@dataclass(frozen=True)
class Shape:
    """A convolution at work."""

    kind: str
    batch: int
    in_channels: int
    out_channels: int
    groups: int
    kernel: int
    stride: int
    height: int
    width: int
    experts: int
    layout: str
    threads: int
    isa: str
    work: str
    """"forward", without gradients, or "training": forward and backward."""

    @property
    def name(self) -> str:
        """A readable name."""
        return (
            f"{self.kind} {self.kernel}x{self.kernel}/{self.stride} {self.in_channels}-{self.out_channels} "
            f"@{self.height}x{self.width} B{self.batch} {self.layout} {self.threads} threads {self.isa} {self.work}"
        )

    @property
    def macs(self) -> int:
        """Multiply-adds of the batch's convolution, about."""
        per_position = self.kernel**2 * self.in_channels * self.out_channels // self.groups
        return self.batch * (self.height // self.stride) * (self.width // self.stride) * per_position


COLUMNS = (
    "cell", *Shape.__dataclass_fields__, "chosen", "best", "auto_ms", *(f"{name}_ms" for name in STRATEGIES), "ratio",
    "ratio_p10", "ratio_p90", "runs", "error", *(name for name in MACHINE if name != "threads"),
)  # fmt: skip


def shapes() -> Iterator[Shape]:
    """The shapes, always the same."""
    draw = random.Random(SEED)
    found = 0
    while found < SHAPES:
        kind = ("pointwise", "dense", "depthwise", "grouped")[found % 4]
        groups, wide, narrow = _channels(draw, kind)
        shape = Shape(
            kind, draw.choice((1, 2, 3, 8, 17)), groups * wide, groups * narrow, groups,
            1 if kind == "pointwise" else draw.choice((3, 3, 5)), draw.choice((1, 1, 2)), draw.randint(5, 41),
            draw.randint(5, 41), draw.choice((2, 4, 8, 8, 16)), draw.choice(list(LAYOUTS)),
            min(draw.randint(1, 4), os.cpu_count() or 1),
            "avx2" if found % 3 == 2 else "best", "forward",
        )  # fmt: skip
        if shape.macs <= MOST_MACS:
            found += 1
            yield shape
            yield replace(shape, work="training")


def _channels(draw: random.Random, kind: str) -> tuple[int, int, int]:
    """Groups, and input and output channels of a group; none is a multiple of 16."""

    def odd(most: int) -> int:
        channels = round(draw.uniform(3, most**0.5) ** 2)  # small ones as often as large ones
        return channels + 1 if channels % 16 == 0 else channels

    if kind == "depthwise":
        return odd(1200), 1, 1
    most = {"pointwise": 900, "dense": 260, "grouped": 70}[kind]
    return 3 if kind == "grouped" else 1, odd(most), odd(most)


QUICK = (
    Shape("dense", 2, 5, 7, 1, 3, 2, 5, 7, 2, "contiguous", 1, "best", "training"),
    Shape("depthwise", 1, 9, 9, 9, 3, 1, 4, 5, 2, "channels_last", 1, "best", "forward"),
)


def row(shape: Shape, quick: bool) -> dict[str, object]:
    """Measure one shape, and compare what the planner's choice computes with the reference."""
    torch.set_num_threads(shape.threads)
    x = torch.randn(shape.batch, shape.in_channels, shape.height, shape.width)
    x = x.contiguous(memory_format=LAYOUTS[shape.layout])
    kernel = (shape.out_channels, shape.in_channels // shape.groups, shape.kernel, shape.kernel)
    mixture = Mixture(torch.rand(shape.batch, shape.experts), torch.randn(shape.experts, *kernel), None)
    padding = shape.kernel // 2
    geometry = ConvGeometry((shape.stride,) * 2, (padding,) * 2, (1, 1), shape.groups)

    leaves = (x, mixture.coefficients, mixture.experts)
    size = (shape.batch, shape.out_channels, *geometry.output_size(x.shape[2:], kernel[2:]))
    grad = torch.randn(size).contiguous(memory_format=LAYOUTS[shape.layout])
    for leaf in leaves:
        leaf.requires_grad_(shape.work == "training")

    def call(asked: str) -> Call:
        def work() -> object:
            y = execute(x, mixture, geometry, choose(x, mixture, geometry, asked, shape.name))
            return torch.autograd.grad(y, leaves, grad) if shape.work == "training" else y

        return work

    able = [name for name in STRATEGIES if strategies[name].supports(mixture, geometry) is None]

    def run() -> tuple[Spread, str, dict[str, Timing]]:
        timings = measure({name: call(name) for name in (AUTO, *able)}, quick=quick)
        best = min(able, key=lambda name: timings[name].ms.median)
        return timings[AUTO].over(timings[best]), best, timings

    runs = [run()]
    if runs[0][0].median > SLOWEST and not quick:
        runs = sorted([*runs, run(), run()], key=lambda one: one[0].median)
    ratio, best, timings = runs[len(runs) // 2]
    return {
        "cell": shape.name, **asdict(shape), "chosen": choose(x, mixture, geometry, AUTO, shape.name), "best": best,
        **{f"{name}_ms": f"{timing.ms.median:.4g}" for name, timing in timings.items()},
        "ratio": f"{ratio.median:.3f}", "ratio_p10": f"{ratio.p10:.3f}", "ratio_p90": f"{ratio.p90:.3f}",
        "runs": len(runs), "error": f"{error(x, mixture, geometry):.1e}", **description(),
    }  # fmt: skip


@torch.no_grad()
def error(x: Tensor, mixture: Mixture, geometry: ConvGeometry) -> float:
    """Largest difference of the planner's choice from the reference in float64, relative to the largest output."""
    got = execute(x, mixture, geometry, choose(x, mixture, geometry, AUTO, "random_shapes"))
    exact = Mixture(mixture.coefficients.double(), mixture.experts.double(), None)
    expected = execute(x.double(), exact, geometry, "reference")
    return float((got - expected).abs().max() / expected.abs().max())


def main(words: Sequence[str] | None = None) -> None:
    """Measure all shapes, or those that --only names; --threads has no effect, each shape has its own."""
    given = arguments("random_shapes", __doc__, words)
    quiet = Quiet(0 if given.quick else 2)
    chosen = list(wanted(given, QUICK if given.quick else shapes()))
    with table(given.out / "random_shapes.csv", COLUMNS, given.only) as add:
        for instructions in ("best", "avx2"):
            shared = [asdict(shape) for shape in chosen if shape.isa == instructions]
            task = {"quick": given.quick, "shapes": shared}
            for found in held_to(instructions, "benchmarks.speed.random_shapes", task) if shared else ():
                add({**found, **quiet.columns()})
                print(f"{found['cell']:<72} {found['chosen']} × {found['ratio']} of {found['best']}", flush=True)


if __name__ == "__main__":
    if task := task_of(sys.argv[1:]):
        for one in task["shapes"]:
            answer(row(Shape(**one), task["quick"]))
    else:
        main(sys.argv[1:])
