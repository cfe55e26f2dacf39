"""A small network and a tiny layer, where a call costs more than what it computes, beside the static ones and timm's.

    python -m benchmarks.speed.small     writes benchmarks/results/small.csv

The network is MobileNetV1 0.25 with eight experts at 28 pixels, downsampled by 4. A training
step is forward, backward and SGD with momentum. One image is classified with batch norms as they are, and in the
inference forms of both networks. The layer is a pointwise convolution of one position, so that nothing but the road to
it is left; what a conditional one takes beyond `nn.Conv2d` stands in `beyond_us`.

Each instruction set is measured in a process of its own: what this CPU has, and AVX2.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.layers import CondConv2d as TimmCondConv2d
from torch import nn

import condconv
from benchmarks.speed.instructions import answer, held_to, task_of
from benchmarks.speed.machine import Quiet, description
from benchmarks.speed.results import MACHINE, TIMING, arguments, table, timing_columns
from benchmarks.speed.subjects import CHANNELS_LAST, OURS, STATIC, TIMM, image_batch
from condconv.benchmarking.networks import TrainingStep, rivals, strategies_of
from condconv.execution import native
from condconv.timing import Call, Timing, measure

COLUMNS = ("cell", "instructions", "contender", "strategy", *TIMING, "beyond_us", *MACHINE)
INSTRUCTIONS = ("best", "avx2")
NETWORK, SIZE, OUTPUT_STRIDE, BATCH = "condconv_mobilenetv1_025", 28, 4, 64
CHANNELS, EXPERTS = 8, 8
CALLS = 200
"""Calls of the tiny layer that are timed as one."""

Contenders = dict[str, Call]


def networks() -> dict[str, nn.Module]:
    """Ours, its static twin, and ours with timm's layers."""
    ours = condconv.create_model(NETWORK, num_classes=10, output_stride=OUTPUT_STRIDE)
    made = dict(zip((OURS, STATIC, TIMM), (ours, *rivals(ours).values()), strict=True))
    return {name: network.eval().to(memory_format=CHANNELS_LAST) for name, network in made.items()}


def training() -> Contenders:
    """A step of each network."""
    return {name: TrainingStep(network, image_batch(BATCH, SIZE)) for name, network in networks().items()}


def one_image() -> Contenders:
    """Each network as it was trained."""
    x = image_batch(1, SIZE)
    return {name: lambda network=network: network(x) for name, network in networks().items()}  # type: ignore[misc]


def inference_forms() -> Contenders:
    """The inference forms of ours and of the static twin; timm's layers have none."""
    x = image_batch(1, SIZE)
    made = {name: condconv.optimize_for_inference(networks()[name]) for name in (OURS, STATIC)}
    return {name: lambda network=network: network(x) for name, network in made.items()}  # type: ignore[misc]


def tiny_layer() -> Contenders:
    """A layer that is given its coefficients, one that routes by itself, and their rivals."""
    x = torch.randn(1, CHANNELS, 1, 1)
    ours = condconv.CondConv2d(CHANNELS, CHANNELS, 1, bias=False, num_experts=EXPERTS).eval().requires_grad_(False)
    own = ours.router
    assert own is not None
    given = own(x)
    timm = TimmCondConv2d(CHANNELS, CHANNELS, 1, num_experts=EXPERTS).eval()
    static = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False).eval()
    calls: dict[str, Callable[[], object]] = {
        STATIC: lambda: static(x),
        TIMM: lambda: timm(x, given),
        f"{TIMM}, routed": lambda: timm(x, own(x)),
        OURS: lambda: ours(x, given),
        f"{OURS}, routed": lambda: ours(x),
    }
    return {name: lambda call=call: repeated(call) for name, call in calls.items()}  # type: ignore[misc]


def repeated(call: Call) -> None:
    """Call often enough to be timed."""
    for _ in range(CALLS):
        call()


CELLS: dict[str, tuple[Callable[[], Contenders], bool, int, float]] = {
    f"training step, batch {BATCH}": (training, True, 1, 0.3),
    "one image": (one_image, False, 1, 0.1),
    "one image, inference forms": (inference_forms, False, 1, 0.1),
    "tiny layer": (tiny_layer, False, CALLS, 0.05),
}
"""Cell → (contenders, with gradients, calls in one, seconds of a burst)."""


def rows(cell: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure one cell in this process."""
    make, gradients, calls, burst_s = CELLS[cell]
    with torch.set_grad_enabled(gradients):
        contenders = make()
        ran = {name: strategies_of(call) for name, call in contenders.items()}
        timings = measure(contenders, burst_s, quick)
    each = {n: Timing(tuple(tuple(ms / calls for ms in turn) for turn in t.turns)) for n, t in timings.items()}
    for name, timing in each.items():
        beyond_us = 1e3 * (timing.ms.median - each[STATIC].ms.median)
        yield {
            "cell": cell, "contender": name, "strategy": ran[name], **timing_columns(timing, each[STATIC]),
            "beyond_us": f"{beyond_us:.1f}", "instructions": native.instruction_set(),
        }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Measure all cells, or those that --only names, with each instruction set."""
    given = arguments("small", __doc__, words)
    quiet = Quiet(0 if given.quick else 2)
    with table(given.out / "small.csv", COLUMNS, given.only) as add:
        for instructions in INSTRUCTIONS:
            task = {"threads": given.threads, "quick": given.quick, "only": given.only}
            for row in held_to(instructions, "benchmarks.speed.small", task):
                add({**row, **description(), **quiet.columns()})
                label = f"{row['instructions']:<8} {row['cell']:<28} {row['contender']:<14}"
                print(f"{label} {row['median_ms']:>10} ms  × {row['ratio']}  + {row['beyond_us']} us", flush=True)


if __name__ == "__main__":
    if task := task_of(sys.argv[1:]):
        torch.set_num_threads(task["threads"])
        torch.manual_seed(0)
        for cell in filter(re.compile(task["only"]).search, CELLS):
            for found in rows(cell, task["quick"]):
                answer(found)
    else:
        main(sys.argv[1:])
