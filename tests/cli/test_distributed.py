"""Training in two processes on one machine: started by torchrun, or by its agent as forks, which start at once."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from condconv.training import experiment
from tests.cli.runner import SMALL, condconv, in_two_processes, metrics, quick, same_weights

ROOT = Path(__file__).parents[2]

# Two passes a step, and everything on whose state has to be the same in both.
ARGUMENTS = (
    "train", *SMALL, "--device", "cpu", "--batch-size", "10", "--accumulate", "2", "--mixup", "0.2", "--auto-augment",
    "trivial", "--ema", "0.9", "--base-batch", "128",
)  # fmt: skip


def torchrun(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program with these arguments in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    return subprocess.run(
        [*command, sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def save_the_end(folder: Path) -> None:
    """Each process writes what it ended with, after the last step."""
    original = experiment.Experiment._train

    def train(self, spec, run, done):  # type: ignore[no-untyped-def]
        trained = original(self, spec, run, done)
        torch.save(trained.network.state_dict(), folder / f"rank{experiment.Processes.from_environment().rank}.pt")
        return trained

    experiment.Experiment._train = train


def test_both_ranks_end_with_the_same_parameters_and_temperature(tmp_path: Path) -> None:
    in_two_processes([quick, partial(save_the_end, tmp_path)], [*ARGUMENTS, "--out", str(tmp_path / "runs")])
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


# The second process dies in the second step of the second epoch; torchrun ends the first one.
KILLED = """
import signal, sys
from condconv.training.checkpoint import CheckpointKeeper
from tests.cli.runner import prepared, signal_in_step
CheckpointKeeper.every_seconds = 0.0
if "--resume" not in sys.argv:
    signal_in_step(signal.SIGKILL, 1, 3, rank="1")
sys.exit(prepared([], sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_and_resumed_in_two_processes_equals_uninterrupted(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program = "import sys; from condconv.cli.main import main; sys.exit(main())"
    done = torchrun(program, *ARGUMENTS, "--out", str(whole))
    assert done.returncode == 0, done.stderr
    assert torchrun(KILLED, *ARGUMENTS, "--out", str(killed)).returncode != 0
    run = killed / "small-1"
    assert torch.load(run / "checkpoints" / "conditional.ckpt", weights_only=True)["SourceDataModule"] == {
        "epoch": 1,
        "position": 20,
    }
    done = torchrun(KILLED, "train", "--resume", str(run))
    assert done.returncode == 0, done.stderr
    assert metrics(run) == metrics(whole / "small-1")
    assert same_weights(run, whole / "small-1", "conditional")
    alone = condconv("train", "--resume", str(run))
    assert alone.returncode == 0 and "is finished already" in alone.stdout
