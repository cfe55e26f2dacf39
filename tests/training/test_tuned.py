"""`condconv train --tune` measures once; a resumed run computes with what was measured, bit by bit."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from condconv.timing import Timing
from condconv.tuning import measuring
from tests.cli.runner import SMALL, condconv, metrics, quick, same_weights, signal_in_step

ARGUMENTS = ("train", *SMALL, "--limit-train", "24", "--tune", "--device", "cpu", "--workers", "0", "--out")


def fastest_is(name: str) -> None:
    """The clock is not asked."""

    def measure(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> dict[str, Timing]:
        return {other: Timing(((1.0 + (other != name),),)) for other in calls}

    measuring.measure = measure


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    done = condconv(*ARGUMENTS, str(out), prepare=[quick, partial(fastest_is, "batched_gemm")])
    assert done.returncode == 0, done.stderr
    assert "tuned for training (forward and backward) on " in done.stdout
    assert "8x16x8x8" in done.stdout and "not tuned" not in done.stdout
    return out / "small-1"


def test_what_was_measured_is_in_the_checkpoint(whole: Path) -> None:
    checkpoint = torch.load(whole / "checkpoints" / "conditional.ckpt", weights_only=True)
    records = checkpoint["callbacks"]["TuneOnce"]["records"]
    assert records and all(pin["strategy"] == "batched_gemm" for pins in records.values() for pin in pins)


def test_a_resumed_run_measures_nothing(whole: Path, tmp_path: Path) -> None:
    stopping = [quick, partial(fastest_is, "batched_gemm"), partial(signal_in_step, signal.SIGTERM, 1, 1)]
    stopped = condconv(*ARGUMENTS, str(tmp_path), prepare=stopping)
    assert stopped.returncode == 0 and "stopped" in stopped.stdout, stopped.stderr
    run = tmp_path / "small-1"
    done = condconv("train", "--resume", str(run), prepare=[quick, partial(fastest_is, "grouped")])
    assert done.returncode == 0 and "tun" not in done.stdout, done.stderr
    assert metrics(run) == metrics(whole) and same_weights(run, whole, "conditional")
