"""What surrounds a run is resumed exactly too: weights that it begins with, a folder that is split, weights of the
loss, a logger, the best epoch.
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file

from condconv.cli.main import main
from condconv.data import open_source
from condconv.runs.building import NetworkBuilder
from condconv.runs.config import TrainConfig
from condconv.tasks import task_of
from condconv.training.checkpoint import CheckpointKeeper
from tests.cli.runner import condconv, metrics, quick, same_weights, save_every_step, signal_in_step
from tests.data.writers import write_folder_set


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(CheckpointKeeper, "every_seconds", 0.0)
    write_folder_set(tmp_path / "data", per_class=8, grey=True, size=(8, 8))
    start = NetworkBuilder(task_of(TrainConfig(data="digits", output_stride=8)), open_source("digits")).static()
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    words = (
        "train", "--data", str(tmp_path / "data" / "train"), "--val-fraction", "0.25", "--pretrained",
        str(tmp_path / "start.safetensors"), "--model", "mobilenetv1_025", "--num-experts", "2", "--output-stride", "8",
        "--epochs", "3", "--batch-size", "4", "--balance", "loss", "--logger", "tensorboard", "--early-stopping", "2",
        "--lr", "0.01", "--workers", "0", "--device", "cpu", "--no-report", "--name", "run", "--out",
    )  # fmt: skip
    assert main([*words, str(tmp_path / "whole")]) == 0
    kill = partial(signal_in_step, signal.SIGKILL, 1, 1)
    killed = condconv(*words, str(tmp_path / "killed"), prepare=[quick, save_every_step, kill])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole, run = (tmp_path / name / "run-1" for name in ("whole", "killed"))
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(whole)
    assert same_weights(run, whole, "conditional") and same_weights(run, whole, "conditional-best")
