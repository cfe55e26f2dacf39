"""Runs `condconv` as a user would: a process of its own, its output, its exit code."""

from __future__ import annotations

import csv
import functools
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.launcher import LaunchConfig, elastic_launch

from condconv.cli.main import main
from condconv.runs.metrics import TIMING_COLUMNS
from condconv.timing import measure
from condconv.training.checkpoint import CheckpointKeeper
from condconv.training.module import TrainingModule
from tests.processes import METHOD, run

# Small enough that most of a run is what comes before and after the training; 10 steps an epoch.
SMALL = (
    "--data", "digits", "--model", "cifar_resnet8", "--variant", "dynamic_convolution", "--num-experts", "2",
    "--epochs", "2", "--batch-size", "8", "--limit-train", "80", "--limit-val", "20",
    "--name", "small", "--no-report",
)  # fmt: skip

Prepare = Callable[[], None]


def condconv(*arguments: str, prepare: Sequence[Prepare] = (), cwd: Path | None = None) -> subprocess.CompletedProcess:  # type: ignore[type-arg]
    """Run the command; what `prepare` holds is called in its process first, and so has to be picklable."""
    return run(prepared, prepare, arguments, cwd=cwd)


def prepared(prepare: Sequence[Prepare], arguments: Sequence[str]) -> int:
    for function in prepare:
        function()
    return main(arguments)


def in_two_processes(prepare: Sequence[Prepare], arguments: Sequence[str]) -> None:
    """The same under DDP, started by torchrun's agent as forks, which start at once; both processes end well."""
    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="test", start_method=METHOD)
    # The agent takes signals over and does not give them back.
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    try:
        assert elastic_launch(config, prepared)(prepare, arguments) == {0: 0, 1: 0}
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def quick(patch: pytest.MonkeyPatch | None = None) -> None:
    """Leave out the pictures, and what is timed or weighed in them, or do it once: they have tests of their own."""
    patch = patch or pytest.MonkeyPatch()
    patch.setattr("condconv.tuning.measuring.TURNS", 2)
    patch.setattr("condconv.tuning.measuring.BURST_S", 0.0)
    patch.setattr("condconv.benchmarking.rows.BURST_S", 0.0)
    patch.setattr("condconv.exporting.verb._BURST_S", 0.0)
    patch.setattr("condconv.benchmarking.memory.measure", lambda *_: {"total_mb": "1.5"})
    patch.setattr("condconv.evaluation.latency.measure", functools.partial(measure, quick=True))
    patch.setattr("condconv.evaluation.figures.png", lambda figure: b"")
    patch.setattr("condconv.analysis.report.to_svg", lambda drawn: "<svg></svg>")


def signal_in_step(signum: int, epoch: int, batch: int, rank: str | None = None, group: bool = False) -> None:
    """A signal comes in the middle of a step (both counted from 0), on this rank or on all, to the process or all of
    its group.
    """
    training_step = TrainingModule.training_step

    def step(self: TrainingModule, images: object, batch_idx: int) -> torch.Tensor:
        if (self.current_epoch, batch_idx) == (epoch, batch) and rank in (None, os.environ.get("RANK")):
            pid = -os.getpgrp() if group else os.getpid()
            # Sent by another process, as a scheduler does it.
            subprocess.run(["kill", f"-{int(signum)}", "--", str(pid)])
        return training_step(self, images, batch_idx)

    TrainingModule.training_step = step


def save_every_step() -> None:
    """A checkpoint after each step, however little time has passed."""
    CheckpointKeeper.every_seconds = 0.0


def metrics(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns of time."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in csv.DictReader(file)]


def same_weights(one: Path, other: Path, network: str) -> bool:
    first, second = load_file(one / f"{network}.safetensors"), load_file(other / f"{network}.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
