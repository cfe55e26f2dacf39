"""Training of the dense tasks: killed and resumed equals uninterrupted, bit for bit, and two processes equal one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from condconv.cli.main import main
from tests.cli.runner import (
    condconv,
    in_two_processes,
    metrics,
    quick,
    same_weights,
    save_every_step,
    signal_in_step,
)
from tests.tasks.test_detect import write_objects
from tests.tasks.test_keypoints import write_joints
from tests.tasks.test_restore import write_pictures


class Case(NamedTuple):
    """Writes the data of a task, and what `condconv train` is told of it."""

    write: Callable[[Path], Path]
    arguments: tuple[str, ...]


CASES = {
    "detect": Case(write_objects, ("--input-size", "64", "--width", "0.25")),
    "keypoints": Case(write_joints, ("--input-size", "64", "--width", "0.25")),
    "restore": Case(write_pictures, ("--input-size", "16", "--degradations", "noise,jpeg")),
}
COMMON = (
    "train", "--epochs", "2", "--limit-train", "6", "--limit-val", "3", "--num-experts", "2", "--ema", "0.9",
    "--workers", "0", "--device", "cpu", "--name", "run", "--no-report",
)  # fmt: skip

each_task = pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[] if task == "restore" else pytest.mark.slow) for task in CASES]
)


@pytest.fixture
def words(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that trains a task, without --out."""
    quick(monkeypatch)
    case = CASES[task]
    return [*COMMON, "--task", task, "--data", str(case.write(tmp_path / "data")), *case.arguments]


@each_task
def test_killed_and_resumed_equals_uninterrupted(words: list[str], tmp_path: Path) -> None:
    words += ["--batch-size", "2"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    # In the third step of the second epoch.
    prepare = [quick, save_every_step, partial(signal_in_step, signal.SIGKILL, 1, 2)]
    killed = condconv(*words, "--out", str(tmp_path), prepare=prepare)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole, run = tmp_path / "whole" / "run-1", tmp_path / "run-1"
    assert len(metrics(run)) == 1
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(whole)
    assert same_weights(run, whole, "conditional")


def still_norms() -> None:
    """Batch statistics stand still. They are those of a pass, as is the number of matched boxes that a loss is divided
    by; for that each process has one image a pass."""
    nn.BatchNorm2d.training = property(lambda self: False, lambda self, mode: None)  # type: ignore[assignment]


@each_task
def test_two_processes_equal_one(words: list[str], tmp_path: Path) -> None:
    words += ["--batch-size", "1"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    ended = condconv(*words, "--accumulate", "2", "--out", str(alone), prepare=[quick, still_norms])
    assert ended.returncode == 0, ended.stderr
    in_two_processes([quick, still_norms], [*words, "--out", str(both)])
    for row, expected in zip(metrics(both / "run-1"), metrics(alone / "run-1"), strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - {"network"}:
            assert float(row[name] or "nan") == pytest.approx(float(expected[name] or "nan"), 1e-4, nan_ok=True), name
    weights, expected_weights = (load_file(out / "run-1" / "conditional.safetensors") for out in (both, alone))
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], atol=1e-5, rtol=1e-4, msg=name)
