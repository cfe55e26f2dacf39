from __future__ import annotations

import csv
from pathlib import Path

import pytest

from condconv.cli.main import main
from condconv.errors import ArgumentError
from condconv.training.lr_find import Point, doubt, suggestion


def points(*smoothed: float) -> list[Point]:
    return [Point(10.0**i, loss, loss) for i, loss in enumerate(smoothed, -3)]


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_smallest_loss() -> None:
    assert suggestion(points(3, 2, 1, 2, 5)) == pytest.approx(10.0**-1 / 10)
    wrong = {(): "not finite from the first step", (1, 2, 3): "rises all .* --lowest", (3, 2, 1): "falls .* --highest"}
    for losses, message in wrong.items():
        with pytest.raises(ArgumentError, match=message):
            suggestion(points(*losses))


def test_a_fall_within_the_noise_is_doubted() -> None:
    smoothed = [2.0, 1.9, 1.8, 1.7, 2.5]
    quiet, loud = (
        [Point(1.0, loss + noise * (-1) ** i, loss) for i, loss in enumerate(smoothed)] for noise in (0.1, 0.2)
    )
    assert doubt(quiet) is None
    assert "fell by 0.3 only, and steps differ from it by 0.2" in str(doubt(loud))


def test_the_rate_grows_from_step_to_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "lr-find", "--data", "digits", "--output-stride", "8", "--batch-size", "4", "--accumulate", "2",
        "--steps", "12", "--lowest", "0.001", "--highest", "1000", "--base-batch", "256", "--variant", "none",
        "--name", "small", "--out",
    )  # fmt: skip
    assert main([*arguments, str(tmp_path)]) == 0
    assert "suggestion: --lr" in capsys.readouterr().out
    assert (tmp_path / "small-lr-find.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "small-lr-find.csv").open() as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert 3 < len(rates) <= 12
    assert rates == pytest.approx([0.001 * (10**6) ** (i / 11) for i in range(len(rates))])
