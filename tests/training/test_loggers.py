"""Loggers by name, offline; one that refuses or is missing does not stop a training that could go on."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest

from condconv.cli.main import main
from condconv.runs.config import TrainConfig
from condconv.training import loggers
from condconv.training.callbacks import EpochRows
from tests.cli.runner import SMALL, metrics, quick

RUN = (*SMALL, "--variant", "none", "--limit-train", "16", "--workers", "0")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


class Log:
    """A logger of Lightning, as far as it is used here."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.version = "the-run"
        self.calls: list[tuple[str, Any]] = []

    def _note(self, call: str, *what: Any) -> None:
        if call == self.refuse:
            raise RuntimeError("no\nroom")
        self.calls.append((call, *what))

    def log_hyperparams(self, settings: dict[str, Any]) -> None:
        self._note("settings", settings)

    def log_metrics(self, numbers: dict[str, float], step: int) -> None:
        self._note("numbers", (step, numbers))

    def finalize(self, status: str) -> None:
        self._note("end", status)


def test_it_gets_the_settings_and_the_numbers_of_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(loggers, "_open", lambda *_: log)
    assert main(["train", *RUN, "--logger", "tensorboard", "--out", str(tmp_path)]) == 0
    assert [call for call, _ in log.calls] == ["settings", "numbers", "numbers", "end"]
    assert log.calls[0][1]["model"] == "cifar_resnet8" and log.calls[0][1]["network"] == "static"
    rows = metrics(tmp_path / "small-1")
    for (_, (step, numbers)), row in zip(log.calls[1:3], rows, strict=True):
        assert step == int(row["epoch"])
        assert numbers["val_accuracy"] == float(row["val_accuracy"]) and numbers["images_per_s"] > 0
    assert log.calls[-1] == ("end", "success")


@pytest.mark.parametrize("call", ["open", "settings", "numbers", "end"])
def test_one_that_refuses_is_said_once_and_the_training_goes_on(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def opened(*_: object) -> Log:
        if call == "open":
            raise OSError("no\nroom")
        return Log(call)

    monkeypatch.setattr(loggers, "_open", opened)
    assert main(["train", *RUN, "--logger", "wandb", "--out", str(tmp_path)]) == 0
    said, run = capsys.readouterr().out, tmp_path / "small-1"
    line = "notice: --logger wandb refuses (no room); training goes on without it, and the numbers are in "
    assert said.count("--logger wandb refuses") == 1 and f"{line}{run}/metrics.csv" in said.splitlines()
    assert len(metrics(run)) == 2 and (run / "summary.md").exists()


def test_a_resumed_run_goes_on_with_the_loggers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        loggers, "_open", lambda name, folder, network, version: asked.append(version) or Log("numbers")
    )
    assert main(["train", *RUN, "--logger", "wandb", "--epochs", "2", "--out", str(tmp_path)]) == 0
    from condconv.training.checkpoint import read_checkpoint

    state = read_checkpoint(tmp_path / "small-1" / "checkpoints" / "static.ckpt")["callbacks"]
    assert next(value for name, value in state.items() if "EpochLogger" in name) == {"id": "the-run"}
    resumed = loggers.EpochLogger(TrainConfig(data="x", logger="wandb"), tmp_path, EpochRows("static", print), print)
    resumed.load_state_dict({"id": "the-run"})
    resumed.on_train_start(None, None)
    assert asked == [None, "the-run"] and resumed.state_dict() == {"id": "the-run"}


@pytest.mark.parametrize(("name", "extra"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("tensorboard", "train")])
def test_a_missing_package_is_named_with_the_command_before_anything_else(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else find(package))
    assert main(["train", *RUN, "--logger", name, "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert (
        said == f"error: --logger {name}: needs the package {name}; install it with: pip install 'condconv[{extra}]'\n"
    )
    assert not (tmp_path / "runs").exists()


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["train", *RUN, "--logger", "tensorboard", "--out", str(tmp_path)]) == 0
    run = tmp_path / "small-1"
    events = EventAccumulator(str(run / "tensorboard" / "static"))
    events.Reload()
    expected = [float(row["train_loss"]) for row in metrics(run)]
    assert [event.value for event in events.Scalars("train_loss")] == pytest.approx(expected)
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_numbers_on_this_disk(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    assert main(["train", *RUN, "--logger", "mlflow", "--out", str(tmp_path)]) == 0
    run = tmp_path / "small-1"
    client = mlflow.MlflowClient((run / "mlflow").resolve().as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("condconv").experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["model"] == "cifar_resnet8"
    history = client.get_metric_history(found.info.run_id, "val_accuracy")
    assert [point.value for point in history] == [float(row["val_accuracy"]) for row in metrics(run)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_stays_offline(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("wandb")
    assert main(["train", *RUN, "--logger", "wandb", "--out", str(tmp_path)]) == 0
    (offline,) = (tmp_path / "small-1" / "wandb").glob("offline-run-*")
    (written,) = offline.glob("*.wandb")
    assert b"val_accuracy" in written.read_bytes()
    assert "refuses" not in capsys.readouterr().out
    logging.getLogger("wandb").handlers.clear()
