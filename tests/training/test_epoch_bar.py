"""Somebody at a terminal sees the epoch move; a file gets the lines of the epochs alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from condconv.cli.main import main
from condconv.errors import DataError
from condconv.training import epoch_bar
from condconv.training.module import TrainingModule
from tests.cli.runner import SMALL, quick

Capture = pytest.CaptureFixture[str]
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
"""What a terminal gets: do not show the cursor, show it again."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(epoch_bar, "_REFRESH_S", 0.0)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_sees_images_rate_loss_and_the_time_left(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["train", *SMALL, "--variant", "none", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    lines = plain(said).replace("\r", "\n").splitlines()
    first = [line for line in lines if line.startswith("epoch 1/2")]
    assert [re.search(r"(\d+)/80", line)[1] for line in first] == [str(8 * step) for step in range(11)]
    assert all(re.search(r"loss \d+\.\d{4} ETA ", line) for line in first)
    assert re.search(r"[\d,]+ images/s", first[-1])
    assert any(line.startswith("validation") for line in lines)
    table = [line for line in lines if line.startswith("static")]
    assert len(table) == 2  # the table stands above the bar, whole
    assert said.count(HIDE) == said.count(SHOW) > 0


def test_a_file_gets_no_bar(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert main(["train", *SMALL, "--variant", "none", "--epochs", "1", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "epoch 1/1" not in captured.out and "\x1b" not in captured.out + captured.err
    assert "images/s" in captured.out  # the title of a column


def test_an_error_gives_the_cursor_back_before_it_is_said(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: TrainingModule, *_: object) -> None:
        raise DataError("broken")

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(TrainingModule, "training_step", step)
    assert main(["train", *SMALL, "--variant", "none", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out.rindex(SHOW) > captured.out.rindex(HIDE) and captured.err == "error: broken\n"
