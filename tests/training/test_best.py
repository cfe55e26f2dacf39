"""The best epoch is kept beside the last one; a network that no longer gets better is stopped, and stays stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import condconv
from condconv.cli.main import main
from condconv.runs.metrics import best_epoch
from condconv.tasks import score_of
from condconv.tasks.classify.task import ClassificationMeter
from tests.cli.runner import SMALL, metrics, quick

SCORE = score_of(None)
STOPPING = (*SMALL, "--variant", "none", "--epochs", "6", "--early-stopping", "2", "--limit-train", "16")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def test_the_best_epoch_is_the_first_of_the_best_and_never_one_without_a_number() -> None:
    def best(*values: float) -> int:
        return best_epoch([{SCORE.column: value} for value in values], SCORE)

    nan = float("nan")
    assert best(0.1, 0.3, 0.2, 0.3) == 1
    assert best(nan, 0.0, nan) == 1
    assert best(nan, nan) == 0


def test_a_network_that_gets_no_better_is_stopped_and_stays_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.75, 0.25, 0.75])
    column = {"val_loss": 1.0}
    monkeypatch.setattr(ClassificationMeter, "compute", lambda _: {**column, SCORE.column: next(scores)})
    assert main(["train", *STOPPING, "--out", str(tmp_path)]) == 0
    run, said = tmp_path / "small-1", capsys.readouterr().out
    rows = metrics(run)
    assert [float(row[SCORE.column]) for row in rows] == [0.5, 0.75, 0.25, 0.75]
    line = "notice: static: stopped after epoch 4; accuracy has not been better than the 75.00 % of epoch 2 since"
    assert line in said.splitlines()
    assert "* static: epoch 2 of 4, 75.00 % (`static-best.safetensors`)" in (run / "summary.md").read_text()
    # As if it had been killed behind the last epoch: resumed, it must not train on.
    (run / "summary.md").unlink()
    before = load_file(run / "static.safetensors")
    assert main(["train", "--resume", str(run)]) == 0
    after = load_file(run / "static.safetensors")
    assert metrics(run) == rows and all(torch.equal(after[name], before[name]) for name in before)


def test_the_best_weights_are_those_of_that_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from condconv.training.best import BestEpoch

    kept: list[dict[str, torch.Tensor]] = []
    of_epoch: list[dict[str, torch.Tensor]] = []
    end = BestEpoch.on_train_epoch_end

    def watched(self: BestEpoch, trainer: object, module: object) -> None:
        of_epoch.append({name: tensor.clone() for name, tensor in module.result.state_dict().items()})
        end(self, trainer, module)
        kept.append(load_file(tmp_path / "small-1" / "conditional-best.safetensors"))

    monkeypatch.setattr(BestEpoch, "on_train_epoch_end", watched)
    assert main(["train", *SMALL, "--epochs", "3", "--lr", "0.02", "--out", str(tmp_path)]) == 0
    run = tmp_path / "small-1"
    values = [{SCORE.column: float(row[SCORE.column])} for row in metrics(run)]
    for epoch, found in enumerate(kept):
        expected = of_epoch[best_epoch(values[: epoch + 1], SCORE)]
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    model = condconv.from_pretrained(run, network="conditional-best")
    image = torch.rand(2, 1, 8, 8)
    last = condconv.from_pretrained(run)
    assert torch.equal(model(image), last(image)) == (best_epoch(values, SCORE) == len(values) - 1)
    assert main(["eval", str(run), "--network", "conditional-best", "--out", str(tmp_path / "ev")]) == 0
    shutil.rmtree(tmp_path / "ev")
