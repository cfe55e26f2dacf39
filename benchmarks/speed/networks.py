"""Inference of a conditional network beside its static twin and timm's own implementation.

    python -m benchmarks.speed.networks     writes benchmarks/results/networks.csv

Ours and the static twin both run in the inference form (`condconv.optimize_for_inference`: batch norm folded,
channels_last), routers included. timm's network runs channels_last; its batch norms cannot be folded into its experts.
At batch 1 they are compiled as well, with and without freezing (timm's with it alone: compiling takes a minute). The
strategies named there are those that run uncompiled.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch._inductor.config
from torch import nn

from benchmarks.speed.results import LIMITS, MACHINE, TIMING, arguments, run_cells, timing_columns
from benchmarks.speed.roofline import Roofline
from benchmarks.speed.subjects import (
    DTYPES,
    OURS,
    STATIC,
    TIMM,
    Subject,
    Work,
    image_batch,
    inference_network,
    timm_name,
)
from condconv.benchmarking import memory
from condconv.benchmarking.networks import strategies_of
from condconv.timing import Call, measure

COLUMNS = (
    "cell", "model", "mode", "batch", "size", "contender", "storage", "rest", "strategy", *TIMING, *LIMITS,
    *memory.MEMORY, *MACHINE,
)  # fmt: skip
EAGER, COMPILED, FROZEN = "eager", "compiled", "compiled and frozen"

SUBJECTS = (
    Subject(STATIC), Subject(STATIC, rest="bf16"), Subject(TIMM), Subject(OURS), Subject(OURS, "bf16"),
    Subject(OURS, "int8"), Subject(OURS, "bf16", "bf16"), Subject(OURS, "int8", "bf16"),
)  # fmt: skip
SUBJECTS_OF = {
    EAGER: SUBJECTS,
    COMPILED: (Subject(STATIC), Subject(OURS)),
    FROZEN: (Subject(STATIC), Subject(TIMM), Subject(OURS)),
}
WITH_MEMORY = (Subject(STATIC), Subject(TIMM), Subject(OURS), Subject(OURS, "int8"))
MEMORY_BATCHES = (1, 16)


@dataclass(frozen=True)
class Cell:
    """A network at work."""

    mode: str
    batch: int
    size: int = 224

    @property
    def name(self) -> str:
        """A readable name, unique among the cells."""
        return f"{self.mode} B{self.batch} {self.size}"


CELLS = (*(Cell(EAGER, batch) for batch in (1, 8, 16, 32)), Cell(COMPILED, 1), Cell(FROZEN, 1))
QUICK = (Cell(EAGER, 2, 64),)


def contenders(cell: Cell, model: str) -> Iterator[tuple[Subject, Call, str]]:
    """Each subject with a call of it and the strategies that run in it."""
    images = {rest: image_batch(cell.batch, cell.size, rest) for rest in DTYPES}
    for subject in SUBJECTS_OF[cell.mode]:
        if subject.kind == TIMM and timm_name(model) is None:
            continue
        network, x = inference_network(subject, model), images[subject.rest]
        ran = strategies_of(lambda network=network, x=x: network(x))  # type: ignore[misc]
        run = network if cell.mode == EAGER else compiled(network, x, cell.mode == FROZEN)
        yield subject, (lambda run=run, x=x: run(x)), ran  # type: ignore[misc]


def compiled(network: nn.Module, x: torch.Tensor, freezing: bool) -> Call:
    """Compile a network for inputs of the shape of `x`; compilation is over when this returns."""
    with torch._inductor.config.patch(freezing=freezing):
        run = torch.compile(network, fullgraph=True, dynamic=False)
        run(x)
    return run


@torch.no_grad()
def rows(cell: Cell, given: argparse.Namespace, roofline: Roofline) -> Iterator[dict[str, object]]:
    """Measure one cell: a row for each subject; its ratio is to the static twin with the same `rest`."""
    torch._dynamo.reset()  # what an earlier cell compiled
    found = list(contenders(cell, given.model))
    timings = measure({s.name: call for s, call, _ in found}, 0.06, given.quick)
    for subject, _, ran in found:
        static = Subject(STATIC, rest=subject.rest)
        work, static_work = (Work.of(given.model, kind, cell.size) for kind in (subject.kind, STATIC))
        dtype = DTYPES[subject.rest]
        macs, static_macs = (w.convolution + w.mixing for w in (work, static_work))
        read = work.weight_bytes(subject)
        limit = roofline.ms(cell.batch * macs, read, dtype)
        static_limit = roofline.ms(cell.batch * static_macs, static_work.weight_bytes(static), dtype)
        weighed = subject in WITH_MEMORY and cell.mode == EAGER and cell.batch in MEMORY_BATCHES and not given.quick
        images = image_batch(cell.batch, cell.size, subject.rest)
        used = memory.measure(inference_network(subject, given.model), images) if weighed else {}
        yield {
            "cell": cell.name, "model": given.model, "mode": cell.mode, "batch": cell.batch, "size": cell.size,
            "contender": subject.kind, "storage": subject.experts if subject.kind == OURS else "",
            "rest": subject.rest, "strategy": ran, **timing_columns(timings[subject.name], timings[static.name]),
            "macs_ratio": f"{macs / static_macs:.3f}", "roofline_ms": f"{limit:.4f}",
            "roofline_ratio": f"{limit / static_limit:.3f}", **roofline.columns(read, dtype), **used,
        }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Measure all cells, or those that --only names."""
    given = arguments("networks", __doc__, words, model="condconv_efficientnet_b0_8e")
    run_cells(given, f"networks{given.suffix}.csv", COLUMNS, QUICK if given.quick else CELLS, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
