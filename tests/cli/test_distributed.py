"""The default recipe in two processes on one machine, started as users start it: with torchrun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from tests.cli.runner import ENVIRONMENT, SMALL, metrics

# Each process writes what it ended with, after the last step.
PROGRAM = """
import os, sys, torch
from condconv.training import experiment
original = experiment.Experiment._train
def train(self, spec, folder, done):
    trained = original(self, spec, folder, done)
    torch.save(trained.network.state_dict(), sys.argv[1] + f"/rank{os.environ['RANK']}.pt")
    return trained
experiment.Experiment._train = train
from condconv.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def test_both_ranks_end_with_the_same_parameters_and_temperature(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program),
        str(tmp_path), "train", *SMALL, "--device", "cpu", "--out", str(tmp_path / "runs"), "--batch-size", "20",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    temperatures = [value for name, value in first.items() if name.endswith("temperature")]
    assert temperatures and all(float(value) == 1.0 for value in temperatures)
    running = [name for name in first if "running" in name or "num_batches" in name]
    assert running
    for name in first:
        # Batch statistics are each rank's own until the next forward pass sends the first rank's around.
        if name not in running:
            assert torch.equal(first[name], second[name]), name
    assert len(metrics(tmp_path / "runs" / "small-1")) == 2
