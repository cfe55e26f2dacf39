"""The commands that are killed at each of their file operations."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from condconv.analysis.curves import MEASURED
from condconv.runs.metrics import TIMING_COLUMNS
from tests.cli.runner import quick
from tests.data.writers import write_folder_set
from tests.reliability.kills import Scenario, Words
from tests.studies.test_sweep import TRAINER

TRAINING = {
    "data": "pets", "model": "mobilenetv1_025", "variant": "dynamic_convolution", "num_experts": 2, "width": 0.25,
    "targets": "last 1 blocks", "output_stride": 8, "epochs": 2, "batch_size": 4, "device": "cpu", "workers": 0,
    "name": "run", "out": "runs",
}  # fmt: skip


def _files(folder: Path) -> dict[str, object]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _pets(folder: Path) -> None:
    write_folder_set(folder / "pets", per_class=6)


def _run(folder: Path) -> None:
    """A run with fresh weights, for the verbs that need one."""
    _pets(folder)
    _settings(folder)
    from tests.runs.writing import write_run

    run, _ = write_run(folder, str(folder / "pets"), name="run")
    (run / "metrics.csv").write_text(f"network,{','.join(MEASURED)}\nconditional{',0.5' * len(MEASURED)}\n")


def _settings(folder: Path) -> None:
    (folder / "settings.yaml").write_text(yaml.safe_dump(TRAINING))


def _train(folder: Path) -> None:
    _pets(folder)
    _settings(folder)


def _trained(folder: Path) -> dict[str, object]:
    run = folder / "runs" / "run-1"
    names = {str(path.relative_to(folder)): True for path in (folder / "runs").rglob("*")}
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in csv.DictReader(file)]
    weights = {name: tensor.tolist() for name, tensor in load_file(run / "conditional.safetensors").items()}
    return {**names, "metrics": rows, "weights": weights}


def _resume(folder: Path) -> Words | None:
    return ("train", "--resume", "run-1", "--out", "runs") if (folder / "runs" / "run-1").exists() else TRAIN


def _quick_training() -> None:
    patch = pytest.MonkeyPatch()
    quick(patch)
    patch.setattr("condconv.analysis.report.draw", lambda *_: [])
    patch.setattr("condconv.analysis.report.render", lambda *_: "<html></html>")
    patch.setattr("condconv.training.checkpoint.CheckpointKeeper.every_seconds", 0.0)


TRAIN = ("train", "--config", "settings.yaml")


def _study(folder: Path) -> None:
    (folder / "trainer.py").write_text(TRAINER)
    (folder / "swept").mkdir()
    arms = {"static": {"variant": "none"}, "condconv": {"variant": "condconv", "num_experts": 2}}
    study = {"title": "t", "data": "digits", "seeds": [0], "arms": arms,
             "common": {"output_stride": 4, "limit_train": 64, "limit_val": 50, "epochs": 2}}  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


def _table(folder: Path) -> dict[str, object]:
    with (folder / "results" / "study.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    for row in rows.values():
        del row["date"], row["commit"]  # they may change while the sweep is killed
    left = {path.name: True for path in (folder / "results").iterdir() if path.suffix != ".lock"}
    return {**rows, **left}


def _sweep_again(folder: Path) -> Words:
    time.sleep(0.3)  # the run of a killed sweep goes on by itself, and its lock with it
    return SWEEP


def _quick_sweep() -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr("condconv.studies.sweep.TRAIN", (sys.executable, "trainer.py"))
    patch.setattr("condconv.studies.sweep._POLL_S", 0.02)


SWEEP = ("sweep", "study.yaml", "--threads", "1", "--out", "swept")


def _model(folder: Path) -> None:
    from condconv.models import create_model, save_pretrained

    made = create_model("mobilenetv1_025", num_classes=2, output_stride=8, width_multiplier=0.25)
    save_pretrained(made, folder / "net")


def _visible(folder: str) -> Callable[[Path], dict[str, object]]:
    return lambda base: _files(base / folder)


def _predictions(folder: Path) -> dict[str, object]:
    left = [path for path in folder.iterdir() if "p.csv" in path.name and path.suffix != ".lock"]
    return {path.name: path.read_bytes() for path in left}


def _report(folder: Path) -> dict[str, object]:
    """The last report; a call that was killed after it had finished the first made that."""
    reports = sorted(path for path in folder.iterdir() if "report" in path.name)
    return {**_files(reports[-1]), **{path.name: True for path in reports if path.name.startswith(".")}}


SCENARIOS = {
    "train": Scenario(_train, TRAIN, _trained, _resume, _quick_training),
    "predict": Scenario(
        _run, ("predict", "run-1", "pets", "--out", "p.csv", "--workers", "0", "--device", "cpu", "--batch-size", "5"),
        _predictions, done="is there already",
    ),
    "shard": Scenario(_pets, ("shard", "pets", "--shard-size", "5", "--workers", "0"), _visible("pets-shards")),
    "sweep": Scenario(_study, SWEEP, _table, _sweep_again, _quick_sweep),
    "analyze": Scenario(
        _run, ("analyze", "run-1", "--data", "pets", "--workers", "0", "--device", "cpu"), _report,
        quicken=_quick_training,
    ),
    "convert": Scenario(
        _model, ("convert", "net", "--out", "converted", "--num-experts", "2", "--input-size", "3x32x32"),
        _visible("converted"),
    ),
}  # fmt: skip
