"""Runs `condconv` as a user would: a real process, its output, its exit code."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from condconv.training.callbacks import TIMING_COLUMNS

# Small enough that a process spends its time on imports; 25 steps an epoch.
SMALL = (
    "--data", "digits", "--model", "mobilenetv1_025", "--variant", "dynamic_convolution", "--num-experts", "2",
    "--output-stride", "8", "--epochs", "2", "--batch-size", "8", "--limit-train", "200", "--limit-val", "40",
    "--name", "small", "--no-report",
)  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
COMMAND = (sys.executable, "-m", "condconv.cli.main")


def condconv(*arguments: str, preamble: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command; `preamble` is Python code to run in the process first."""
    command = COMMAND
    if preamble:
        start = f"{preamble}\nimport sys\nfrom condconv.cli.main import main\nsys.exit(main())"
        command = (sys.executable, "-c", start)
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def signal_at(signum: int, epoch: int, step: int) -> str:
    """A preamble: the process sends itself a signal in the middle of a step (both counted from 0)."""
    return (
        "import os\n"
        "from condconv.training.module import ClassificationModule\n"
        "training_step = ClassificationModule.training_step\n"
        "def interrupted(self, batch, batch_idx):\n"
        f"    if (self.current_epoch, batch_idx) == ({epoch}, {step}):\n"
        f"        os.kill(os.getpid(), {int(signum)})\n"
        "    return training_step(self, batch, batch_idx)\n"
        "ClassificationModule.training_step = interrupted"
    )


def metrics(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns of time."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in csv.DictReader(file)]


def same_weights(one: Path, other: Path, network: str) -> bool:
    first, second = load_file(one / f"{network}.safetensors"), load_file(other / f"{network}.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
