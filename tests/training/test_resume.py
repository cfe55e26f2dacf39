"""Killed at some point and resumed equals uninterrupted, bit for bit; with everything on that has a state.

The killed run is a process of its own and gets a real SIGKILL.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from condconv.cli.main import main
from condconv.data.digits import open_digits
from condconv.errors import CheckpointError
from condconv.runs.config import TrainConfig
from condconv.tasks import task_of
from condconv.training import checkpoint
from condconv.training.checkpoint import CheckpointKeeper, read_checkpoint, require_same_run
from condconv.training.module import TrainingModule
from tests.cli.runner import Prepare, condconv, metrics, quick, same_weights, save_every_step, signal_in_step

# Three steps of two passes in each of two epochs.
ARGUMENTS = (
    "train", "--data", "digits", "--model", "mobilenetv1_025", "--variant", "dynamic_convolution", "--num-experts", "2",
    "--targets", "last 2 blocks", "--output-stride", "8", "--width", "0.5", "--epochs", "2", "--batch-size", "4",
    "--accumulate", "2", "--limit-train", "26", "--limit-val", "8", "--ema", "0.9", "--mixup", "0.2",
    "--auto-augment", "rand", "--balance", "sampling", "--early-stopping", "5",
    "--dropout", "0.2", "--drop-path", "0.2", "--expert-dropout", "0.2", "--optimizer", "rmsproptf", "--lr", "0.01",
    "--schedule", "exponential", "--workers", "0", "--device", "cpu", "--no-report", "--name", "run", "--out",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(CheckpointKeeper, "every_seconds", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        assert main([*ARGUMENTS, str(out)]) == 0
    return out / "run-1"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_write(number: int, before: Callable[[], None] = die) -> None:
    """Come in when the n-th checkpoint is in a temporary file, half-written for all that the disk knows."""
    write, sync, count = checkpoint.write_bytes, os.fsync, iter(range(1, 100))

    def write_bytes(path: Path, content: bytes) -> None:
        if next(count) == number:
            os.fsync = lambda _: before()
        try:
            write(path, content)
        finally:
            os.fsync = sync

    checkpoint.write_bytes = write_bytes


dies_in_step = partial(signal_in_step, signal.SIGKILL)


@pytest.mark.parametrize(
    ("prepare", "position"),
    [
        pytest.param(partial(dies_in_step, 1, 3), (1, 8), id="between two passes of a step"),
        pytest.param(partial(in_write, 5), (1, 8), id="inside the write of a checkpoint"),
        pytest.param(partial(in_write, 3), (0, 16), id="inside the write as an epoch ends", marks=pytest.mark.slow),
        pytest.param(partial(dies_in_step, 1, 0), (1, 0), id="between two epochs", marks=pytest.mark.slow),
        pytest.param(partial(dies_in_step, 0, 1), None, id="before the first checkpoint", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, prepare: Prepare, position: tuple[int, int] | None
) -> None:
    killed = condconv(*ARGUMENTS, str(tmp_path), prepare=[quick, save_every_step, prepare])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = tmp_path / "run-1"
    path = run / "checkpoints" / "conditional.ckpt"
    assert path.exists() == (position is not None)
    if position is not None:
        assert read_checkpoint(path)["SourceDataModule"] == dict(zip(("epoch", "position"), position, strict=True))
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(whole)
    assert same_weights(run, whole, "conditional")
    assert not list(run.rglob("*.tmp"))


def test_a_full_disk_leaves_the_last_good_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_bytes", checkpoint.write_bytes)  # put back what `in_write` changes
    in_write(5, full)
    assert main([*ARGUMENTS, str(tmp_path)]) == 2
    assert (
        "could not be written (No space left on device); what stood there before is intact" in capsys.readouterr().err
    )
    run = tmp_path / "run-1"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["conditional.ckpt"]
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(whole)
    assert same_weights(run, whole, "conditional")


def test_the_result_is_the_average_at_the_last_temperature(whole: Path) -> None:
    state = read_checkpoint(whole / "checkpoints" / "conditional.ckpt")["state_dict"]
    average = {name: value for name, value in state.items() if name.startswith("average.network.")}
    temperatures = [value for name, value in average.items() if name.endswith("temperature")]
    assert temperatures and all(float(value) == 1.0 for value in temperatures)
    weight = "blocks.0.0.conv_dw.weight"
    assert not torch.equal(average[f"average.network.{weight}"], state[f"network.{weight}"])


def test_another_recipe_or_other_classes_are_refused_before_the_first_step(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole / "summary.md").rename(tmp_path / "summary.md")
    try:
        assert main(["train", "--resume", str(whole), "--recipe", "fashion_mnist_dynamic"]) == 2
    finally:
        (tmp_path / "summary.md").rename(whole / "summary.md")
    assert "--recipe='fashion_mnist_dynamic': the run to resume was started with None" in capsys.readouterr().err
    path = whole / "checkpoints" / "conditional.ckpt"
    saved = read_checkpoint(path)
    identity = {**saved["condconv"]["identity"], "classes": 9}
    config = TrainConfig(data="digits")
    module = TrainingModule(torch.nn.Identity(), task_of(config), open_digits(), steps_per_epoch=1, global_batch=1)
    with pytest.raises(CheckpointError, match="another run .classes 10 there, 9 here"):
        require_same_run(path, saved, identity, module)
    # As a version would have written it that knew no tuning; and then with tuning asked for.
    del saved["condconv"]["identity"]["tune"]
    with pytest.raises(CheckpointError, match="another run .classes 10 there, 9 here; tune False there, True here"):
        require_same_run(path, saved, {**identity, "tune": True}, module)
    with pytest.raises(CheckpointError, match="another run .classes 10 there, 9 here.;"):
        require_same_run(path, saved, identity, module)
