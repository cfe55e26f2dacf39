"""Training in two processes on one machine, started as users start it: with torchrun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.runner import ENVIRONMENT, SMALL, condconv, metrics, same_weights

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


# Two passes a step, and everything on whose state has to be the same in both.
ARGUMENTS = (
    "train", *SMALL, "--device", "cpu", "--batch-size", "10", "--accumulate", "2", "--mixup", "0.2", "--auto-augment",
    "trivial", "--ema", "0.9", "--base-batch", "128",
)  # fmt: skip


def torchrun(tmp_path: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(path), str(tmp_path), *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )


def test_both_ranks_end_with_the_same_parameters_and_temperature(tmp_path: Path) -> None:
    done = torchrun(tmp_path, PROGRAM, *ARGUMENTS, "--out", str(tmp_path / "runs"))
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
    rows = metrics(tmp_path / "runs" / "small-1")
    assert len(rows) == 2


# The second process dies in the third step of the second epoch; torchrun ends the first one.
KILLED = """
import os, signal, sys
from condconv.training.checkpoint import CheckpointKeeper
from condconv.training.module import ClassificationModule
CheckpointKeeper.every_seconds = 0.0
training_step = ClassificationModule.training_step
def step(self, batch, batch_idx):
    if "--resume" not in sys.argv and (self.current_epoch, batch_idx, os.environ["RANK"]) == (1, 5, "1"):
        os.kill(os.getpid(), signal.SIGKILL)
    return training_step(self, batch, batch_idx)
ClassificationModule.training_step = step
from condconv.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_killed_and_resumed_in_two_processes_equals_uninterrupted(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert torchrun(tmp_path, PROGRAM, *ARGUMENTS, "--out", str(whole)).returncode == 0
    assert torchrun(tmp_path, KILLED, *ARGUMENTS, "--out", str(killed)).returncode != 0
    run = killed / "small-1"
    assert torch.load(run / "checkpoints" / "conditional.ckpt", weights_only=True)["SourceDataModule"] == {
        "epoch": 1,
        "position": 40,
    }
    done = torchrun(tmp_path, KILLED, "train", "--resume", str(run))
    assert done.returncode == 0, done.stderr
    assert metrics(run) == metrics(whole / "small-1")
    assert same_weights(run, whole / "small-1", "conditional")
    alone = condconv("train", "--resume", str(run))
    assert alone.returncode == 0 and "is finished already" in alone.stdout
