"""Runs the runs of a study, each in a fresh process, and adds a row to its table for each one that finishes.

A run is its settings: its folder is named after them, so that runs which several arms or studies have in common are
trained once. Each is locked while it is trained; two sweeps of the same study share the work.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

import condconv
from condconv.analysis.collect import COUNTERFACTUAL_IMAGES
from condconv.cpu_info import processor
from condconv.data import Source, default_workers, sources
from condconv.devices import resolve_device
from condconv.errors import ArgumentError, CondConvError
from condconv.evaluation.evaluate import scores_with
from condconv.files import Lock, write_text
from condconv.runs.building import CONDITIONAL, STATIC
from condconv.runs.config import NO_VARIANT, TrainConfig
from condconv.runs.folder import RunFolder
from condconv.runs.networks import NetworkSpec, matching_width, plan_networks
from condconv.runs.trained import load_trained
from condconv.signals import StopRequest
from condconv.studies.study import (
    CHECKS,
    START_FROM,
    WIDENED_TO,
    Cell,
    Study,
    StudyRow,
    check_column,
    columns_of,
    write_row,
)
from condconv.tasks import task_of
from condconv.tasks.base import Task

TRAIN = (sys.executable, "-m", "condconv.cli.main", "train")
_POLL_S = 0.5


class RunFailed(CondConvError):
    """A run ended without finishing; the message is its own last line."""


class Sweep:
    """Trains the runs of one study.

    Args:
        study: what to run.
        data: the set or folder to train on; None where the study names a set that needs no folder.
        out: folder of the run folders.
        threads: of each run; None for torch's default.
        stop: asked between runs, and passed on to the one in progress.
        progress: is told the epochs that are done of the run in progress.
    """

    def __init__(
        self,
        study: Study,
        data: str | None,
        out: Path,
        threads: int | None,
        stop: StopRequest,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.study = study
        self.data = data_of(study, data)
        self.out = out.expanduser()
        self.threads = threads
        self.stop = stop
        self.progress = progress
        self._widths: dict[str, float] = {}

    @cached_property
    def _task(self) -> Task:
        """The task of all arms; with the settings that they have in common."""
        return task_of(TrainConfig(**self.study.common, data=self.data))

    @cached_property
    def source(self) -> Source:
        """The data set, whole."""
        return self._task.open(self.data)

    def run(self, cell: Cell) -> StudyRow:
        """Train a run, or go on with it, or find it finished; add its row to the table and return it.

        Raises:
            RunFailed: it ended without finishing.
            BusyError: another process has it, or one that it starts from, in hand.
            Interrupted: the sweep was asked to stop; the run can be gone on with.
        """
        config = self.config(*cell)
        self.out.mkdir(parents=True, exist_ok=True)
        with Lock(self.out / f"{config.run_name}.lock", config.run_name) as lock:
            folder = self._train(config, lock.descriptor)
            row = self._row(cell, config, folder)
        self.study.results.parent.mkdir(parents=True, exist_ok=True)
        with Lock(self.study.results.with_suffix(".lock"), str(self.study.results), wait=True):
            write_row(self.study.results, row, columns_of(self.study.score))
        return row

    def config(self, arm: str, seed: int) -> TrainConfig:
        """The settings of one run, with what the arm takes from other arms filled in."""
        settings = {**self.study.common, **self.study.arms[arm]}
        target, start = settings.pop(WIDENED_TO, None), settings.pop(START_FROM, None)
        if target is not None:
            settings |= {"variant": NO_VARIANT, "width": self._width(target)}
        identity = {**settings, "data": self.study.data}
        if start is not None:
            identity[START_FROM] = self.config(start, seed).run_name.rsplit("-seed", 1)[0]
            settings["pretrained"] = str(self._weights(start, seed))
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        experts = settings.get("num_experts", "")
        name = f"{self.study.data}-{settings.get('variant', 'default')}{experts}-{digest}-seed{seed}"
        try:
            return TrainConfig(**settings, data=self.data, seed=seed, name=name, out=str(self.out), report=False)
        except TypeError as error:
            raise ArgumentError(f"{self.study.path}: arm {arm}: a setting is of the wrong kind ({error})") from error

    def _width(self, arm: str) -> float:
        """The width of the static network with the multiply-adds of an arm."""
        if arm not in self._widths:
            self._widths[arm] = round(matching_width(*self._planned(self.config(arm, self.study.seeds[0]))), 6)
        return self._widths[arm]

    def _weights(self, arm: str, seed: int) -> Path:
        """The trained weights of another arm, which is run first where it is not finished."""
        config = self.config(arm, seed)
        folder = find_finished(self.out, config.run_name)
        if folder is None:
            self.run((arm, seed))
            folder = find_finished(self.out, config.run_name)
            assert folder is not None
        return folder.weights(network_of(config))

    def _train(self, config: TrainConfig, lock: int) -> RunFolder:
        """Run `condconv train` until the run is finished. It inherits the lock's descriptor, and so the lock."""
        if (finished := find_finished(self.out, config.run_name)) is not None:
            return finished
        unfinished = find_runs(self.out, config.run_name)
        settings = self.out / f"{config.run_name}.yaml"
        write_text(settings, yaml.safe_dump(changed(config)))
        words = ["--resume", str(unfinished[-1].path)] if unfinished else ["--config", str(settings)]
        with (self.out / f"{config.run_name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*TRAIN, *words],
                stdout=log, stderr=subprocess.STDOUT, env=self._environment(), start_new_session=True, pass_fds=(lock,),
            )  # fmt: skip
            self._wait(process, config)
        self.stop.check()
        if (finished := find_finished(self.out, config.run_name)) is None:
            last = Path(log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RunFailed(f"{' '.join(last) or 'ended without a word'} (exit code {process.returncode}; {log.name})")
        return finished

    def _environment(self) -> dict[str, str]:
        return dict(os.environ) if self.threads is None else {**os.environ, "OMP_NUM_THREADS": str(self.threads)}

    def _wait(self, process: subprocess.Popen[bytes], config: TrainConfig) -> None:
        """Wait for a run; a request to stop is passed on once, and the run then saves a checkpoint and ends."""
        asked = False
        try:
            while process.poll() is None:
                if self.stop.signum and not asked:
                    process.terminate()
                    asked = True
                for folder in find_runs(self.out, config.run_name)[-1:]:
                    self.progress(len(read_metrics(folder)), config.epochs)
                try:
                    process.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()

    def _row(self, cell: Cell, config: TrainConfig, folder: RunFolder) -> StudyRow:
        arm, seed = cell
        score = self.study.score
        network = self._network(config)
        last, *_ = reversed(rows := read_metrics(folder))
        used = self.source.limited(config.limit_train, config.limit_val)
        device = resolve_device(config.device)
        values: dict[str, Any] = {
            "study": self.study.name, "arm": arm, "network": config.model, "variant": config.variant,
            "experts": config.num_experts or "", "width": config.width, "seed": seed, "data": self.study.data,
            "n_train": len(used.train), "n_val": len(used.val), "epochs": config.epochs,
            "params": network.cost.params, "macs": network.cost.macs, "ratio": f"{self._ratio(cell):.4f}",
            "train_loss": f"{float(last['train_loss']):.4f}", "val_loss": f"{float(last.get('val_loss') or 'nan'):.4f}",
            score.study_column: score.shown(float(last[score.column])),
            f"best_{score.study_column}": score.shown(max(float(row[score.column]) for row in rows)),
            **{check_column(name, score): value for name, value in self._checks(config, folder, used).items()},
            "wall_s": f"{sum(float(row['seconds']) for row in rows):.0f}",
            "machine": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
            "threads": self.threads or torch.get_num_threads(), "torch": torch.__version__, "commit": commit(),
            "date": datetime.now(timezone.utc).date().isoformat(), "settings": self.study.identity(arm),
        }  # fmt: skip
        return {name: str(value) for name, value in values.items()}

    def _planned(self, config: TrainConfig) -> tuple[Task, Source]:
        """The task of a run, and the data as it wants them."""
        task = task_of(config)
        return task, task.prepared(self.source)

    def _network(self, config: TrainConfig) -> NetworkSpec:
        return plan_networks(*self._planned(config))[0]

    def _ratio(self, cell: Cell) -> float:
        """Multiply-adds of an arm over those of the static network of its shape (of the arm it is widened to)."""
        arm, seed = cell
        target = self.study.arms[arm].get(WIDENED_TO, arm)
        planned = self._network(self.config(target, seed))
        if target == arm:
            return planned.ratio
        widened = self._network(self.config(arm, seed))
        return widened.cost.macs / planned.cost.macs * planned.ratio

    def _checks(self, config: TrainConfig, folder: RunFolder, source: Source) -> dict[str, str]:
        """The score on 2,000 validation images with changed coefficients, where the study asks for it."""
        if not self.study.routing_checks or network_of(config) == STATIC:
            return dict.fromkeys(CHECKS, "")
        model, source = load_trained(folder.path, CONDITIONAL, source.limited(None, COUNTERFACTUAL_IMAGES))
        task = task_of(config)
        found = scores_with(
            CHECKS, model, source, task, batch_size=config.batch_size, workers=default_workers(source),
            device=resolve_device(config.device), skip_bad=True,
        )  # fmt: skip
        return {name: task.score.shown(value) for name, value in found.items()}


def data_of(study: Study, data: str | None) -> str:
    """What to train on. Raises `ArgumentError` where the study needs a folder, or another one than is given."""
    if data is None:
        if study.data in sources:
            return study.data
        raise ArgumentError(f"--data is missing; {study.path} is about {study.data}: pass the folder of that name")
    name = os.path.basename(os.path.normpath(os.path.expanduser(data)))
    if name != study.data:
        raise ArgumentError(f"--data {data}: {study.path} is about {study.data}; pass the folder of that name")
    return data


def network_of(config: TrainConfig) -> str:
    """The name of the network that a run of a study trains."""
    return STATIC if config.variant == NO_VARIANT else CONDITIONAL


def changed(config: TrainConfig) -> dict[str, Any]:
    """The settings that are not the defaults, and the model, without which small images would get their recipe."""
    given = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    return given | {"model": config.model}


def find_runs(out: Path, name: str) -> list[RunFolder]:
    """The run folders of a run, oldest first."""
    found = [path.parent for path in out.glob(f"{name}-*/config.yaml")]
    return [RunFolder(path) for path in sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))]


def find_finished(out: Path, name: str) -> RunFolder | None:
    """The finished run folder of a run."""
    return next((folder for folder in find_runs(out, name) if folder.summary.exists()), None)


def read_metrics(folder: RunFolder) -> list[dict[str, str]]:
    """The epochs of a run so far."""
    path = folder.path / "metrics.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def commit() -> str:
    """The commit of this package's source, with "+" where files differ from it; its version where there is no git."""
    folder = Path(condconv.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", ".").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return condconv.__version__


def pending(study: Study, cells: Sequence[Cell]) -> list[Cell]:
    """Those of the cells that have no row in the table yet."""
    finished = study.finished()
    return [cell for cell in cells if cell not in finished]
