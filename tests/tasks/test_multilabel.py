"""Images with several classes: from a table to metrics, evaluation, prediction; killed and resumed."""

from __future__ import annotations

import csv
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from condconv.cli.main import main
from condconv.data.label_table import open_labelled
from condconv.runs.config import TrainConfig
from condconv.tasks import task_of
from condconv.tasks.multilabel.evaluator import TagEvaluator, TagMeter
from condconv.training.checkpoint import CheckpointKeeper
from tests.cli.runner import condconv, metrics, quick, same_weights, signal_in_step
from tests.data.writers import jpeg

CLASSES = ("cat", "dog", "toad")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A folder of 24 images and its table; one image has no label at all."""
    folder = tmp_path_factory.mktemp("tagged")
    lines = ["image,label"]
    for number in range(24):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, (8, 8), grey=True))
        lines.append(f"{number}.jpg,{'|'.join(name for bit, name in enumerate(CLASSES) if number % 8 >> bit & 1)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return str(folder), str(folder / "labels.csv")


def words(data: tuple[str, str], out: Path) -> list[str]:
    return [
        "train", "--task", "multilabel", "--data", data[0], "--labels", data[1], "--val-fraction", "0.3",
        "--model", "mobilenetv1_025", "--num-experts", "2", "--output-stride", "8", "--epochs", "2",
        "--batch-size", "4", "--workers", "0", "--device", "cpu", "--name", "tagged", "--out", str(out),
    ]  # fmt: skip


def test_a_run_from_table_to_answers(
    data: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(CheckpointKeeper, "every_seconds", 0.0)
    assert main(words(data, tmp_path / "whole")) == 0
    run = tmp_path / "whole" / "tagged-1"
    assert all(0 <= float(row["val_map"]) <= 1 for row in metrics(run))
    assert "mAP" in capsys.readouterr().out and "| toad |" in (run / "summary.md").read_text()
    assert (run / "report").is_dir()

    out = tmp_path / "evaluation"
    assert main(["eval", str(run), "--out", str(out), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    with (out / "classes.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == list(CLASSES)
    assert f"mAP {100 * float(metrics(run)[-1]['val_map']):.2f} %" in said
    table = tmp_path / "p.csv"
    assert main(["predict", str(run), data[0], "--out", str(table), "--workers", "0", "--tta"]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert {row[f"class_{rank}"] for row in rows for rank in (1, 2, 3)} == set(CLASSES)
    assert any(abs(sum(float(row[f"probability_{rank}"]) for rank in (1, 2, 3)) - 1) > 0.1 for row in rows)

    killed = condconv(*words(data, tmp_path / "killed"), prepare=[quick, partial(signal_in_step, signal.SIGKILL, 1, 2)])
    assert killed.returncode == -signal.SIGKILL
    again = tmp_path / "killed" / "tagged-1"
    assert main(["train", "--resume", str(again)]) == 0
    assert metrics(again) == metrics(run) and same_weights(again, run, "conditional")


def test_the_numbers_are_those_of_scikit_learn(data: tuple[str, str]) -> None:
    source = open_labelled(Path(data[0]), data[1], val_fraction=0.3, several=True)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator)
    tags = (torch.rand(40, 3, generator=generator) < 0.3).float()
    tags[:, 2] = 0  # a class that does not occur
    evaluator, meter = TagEvaluator(source), TagMeter(source)
    for first in range(0, 40, 16):
        batch = [torch.zeros(0), tags[first : first + 16].clone()]
        evaluator.add(logits[first : first + 16], batch)
        meter.update(logits[first : first + 16], batch)
    blank = [torch.zeros(0), torch.full((2, 3), -1.0)]
    evaluator.add(torch.randn(2, 3), blank)
    meter.update(torch.randn(2, 3), blank)
    found = evaluator.found()
    expected = [average_precision_score(tags[:, k], logits[:, k].sigmoid()) for k in range(2)]
    assert found.precision[:2].tolist() == pytest.approx(expected, abs=1e-6) and found.precision[2].isnan()
    assert found.score == pytest.approx(sum(expected) / 2, abs=1e-6)
    of_class = [f1_score(tags[:, k], logits[:, k] > 0) for k in range(2)]
    assert found.mean_f1 == pytest.approx(sum(of_class) / 2, abs=1e-6)
    assert found.images == 40 and found.having.tolist() == tags.sum(dim=0).int().tolist()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, tags)
    assert meter.compute() == pytest.approx(
        {"val_loss": float(loss), "val_map": found.score, "val_f1": found.mean_f1}, abs=1e-6
    )


def test_routing_is_reported_by_the_first_class() -> None:
    task = task_of(TrainConfig(data="x", task="multilabel", labels="y"))
    tags = torch.tensor([[0.0, 1, 1], [0, 0, 0], [-1, -1, -1], [1, 0, 0]])
    assert task.group_of([None, tags]).tolist() == [1, -1, -1, 0]


def test_without_a_table_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--task", "multilabel", "--data", "digits", "--out", str(tmp_path)]) == 2
    assert "--task multilabel: digits comes without a table of labels; pass --labels TABLE" in capsys.readouterr().err
