"""Runs of several studies at once on one GPU: each arm's training step is a CUDA graph, replayed on its own stream.

python -m benchmarks.accuracy.many_runs --minutes 6.5 --data DATA --out OUT demo:0-9 a_fashion e_conditions

The studies are those of `condconv sweep`, in the order given, and so are networks, settings, order of the pictures and
conditions (see `pictures` and `captured` for what is drawn anew). Small networks leave a GPU idle: many of them side by
side fill it, with the library's own layers, so that nothing has to be stacked. OUT gets

    runs.csv            finished runs, in the columns of benchmarks/accuracy/results
    epochs.csv          losses and accuracy of every epoch
    by_condition.csv    the accuracy under each condition alone, seen or not, of studies under conditions

written run by run. Runs that are in a study's table are left out, and those in OUT when the command is repeated;
`python -m benchmarks.accuracy.merge OUT demo a_fashion` puts what is in OUT into the tables. Without a GPU the same
steps run one by one, slowly.
"""

from __future__ import annotations

import argparse
import csv
import gc
import multiprocessing
import os
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.accuracy.by_condition import COLUMNS as BY_CONDITION
from benchmarks.accuracy.by_condition import HELD_OUT
from benchmarks.accuracy.captured import CapturedNetwork
from benchmarks.accuracy.pictures import Pictures, in_memory
from condconv.analysis.collect import COUNTERFACTUAL_IMAGES
from condconv.cpu_info import processor
from condconv.data import Source, open_source, sources
from condconv.runs.building import NetworkBuilder
from condconv.runs.config import NO_VARIANT, TrainConfig
from condconv.runs.networks import Cost, matching_width, plan_networks
from condconv.studies.study import CHECKS, START_FROM, WIDENED_TO, Study, StudyRow, columns_of, read_study
from condconv.studies.sweep import commit
from condconv.tasks import score_of, task_of

HERE = Path(__file__).resolve().parent
COLUMNS = columns_of(score_of("classify"))
EPOCHS = ("study", "arm", "seed", "epoch", "train_loss", "val_loss", "top1_pct")
EVALUATED = 5
"""Seeds of a study whose networks are evaluated under each condition alone."""
STREAMS = 24
POLL_S = 2e-4
Outcomes = Sequence[tuple[float, float, float]]
"""Of each epoch: training loss, validation loss, share of validation images right."""
Wait = torch.cuda.Event | None
"""What a run waits for; None for nothing."""
Run = Generator[Wait, None, None]


@dataclass(frozen=True)
class Price:
    """What an arm costs: its width, multiply-adds and parameters, multiply-adds over those of its static twin."""

    width: float
    cost: Cost
    ratio: float


@dataclass(frozen=True)
class Task:
    """The runs of one arm."""

    study: Study
    arm: str
    seeds: tuple[int, ...]

    @property
    def start(self) -> str | None:
        """The arm whose trained weights it begins with."""
        name: str | None = self.study.arms[self.arm].get(START_FROM)
        return name

    def key(self, seed: int) -> tuple[str, str, int]:
        """What decides a run's outcome: equal for a run that several studies have in common."""
        return self.study.data, self.study.identity(self.arm), seed


def config_of(study: Study, arm: str, seed: int = 0, width: float = 1.0) -> TrainConfig:
    """The settings of a run; the width of an arm that is widened is given."""
    settings = {**study.common, **study.arms[arm]}
    settings.pop(START_FROM, None)
    if settings.pop(WIDENED_TO, None) is not None:
        settings |= {"variant": NO_VARIANT, "width": width}
    return TrainConfig(**settings, data=study.data, seed=seed)


def priced(study: Study, arm: str, source: Source) -> Price:
    """Width and cost of an arm's network on images such as those of a source."""
    target, width, relative = study.arms[arm].get(WIDENED_TO), config_of(study, arm).width, None
    if target is not None:
        width = round(matching_width(task_of(config_of(study, target)), source), 6)
        relative = priced(study, target, source)
    planned = plan_networks(task_of(config_of(study, arm, width=width)), source)[0]
    ratio = planned.ratio if relative is None else planned.cost.macs / relative.cost.macs * relative.ratio
    return Price(width, planned.cost, ratio)


def read_table(path: Path) -> list[StudyRow]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Table:
    """A CSV file that grows by whole rows, each on the disk before the next one."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        self.rows = read_table(path)
        if not path.exists():
            self._append(columns)

    def add(self, *values: object) -> None:
        """Add a row, its values in the order of the columns."""
        row = {name: str(value) for name, value in zip(self.columns, values, strict=True)}
        self._append(list(row.values()))
        self.rows.append(row)

    def _append(self, values: Sequence[str]) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(values)
            file.flush()
            os.fsync(file.fileno())


class ManyRuns:
    """Trains tasks side by side on a device until they are done or the time is over.

    Args:
        tasks: in order of their value.
        given: decoded data sets by name.
        prices: of each study's arm.
        out: folder of the tables.
        device: where to train.
        commit: of the source, for the rows.
        deadline: on `time.monotonic`.
        streams: how many arms are trained at a time.
    """

    def __init__(
        self, tasks: Sequence[Task], given: dict[str, Source], prices: dict[tuple[str, str], Price], out: Path,
        device: torch.device, commit: str, deadline: float, streams: int = STREAMS,
    ) -> None:  # fmt: skip
        self.tasks, self.given, self.prices, self.device = tasks, given, prices, device
        self.commit, self.deadline, self.streams = commit, deadline, streams
        out.mkdir(parents=True, exist_ok=True)
        self.runs, self.epochs = Table(out / "runs.csv", COLUMNS), Table(out / "epochs.csv", EPOCHS)
        self.conditions = Table(out / "by_condition.csv", BY_CONDITION)
        self.weights = Path(tempfile.mkdtemp(prefix="condconv-"))
        self._first: dict[tuple[str, str, int], Task] = {}
        """Of the tasks that have a run in common, the one that trains it."""
        for task in tasks:
            for seed in task.seeds:
                self._first.setdefault(task.key(seed), task)
        self._pictures: dict[object, Pictures] = {}
        self._single: dict[tuple[Pictures, str], torch.Tensor] = {}

    def run(self) -> None:
        """Go through the tasks; what waits for the device waits beside the others."""
        queue = deque(self.tasks)
        active: list[tuple[Task, Run, Wait]] = []
        while (queue or active) and time.monotonic() < self.deadline:
            if queue and len(active) < self.streams:
                task = queue.popleft()
                active.append((task, self._trained(task), None))
            still = [entry if _is_waiting(entry[2]) else self._advanced(*entry) for entry in active]
            idle = all(before is after for before, after in zip(active, still, strict=True))
            active = [entry for entry in still if entry is not None]
            if idle:
                time.sleep(POLL_S)
        for _, run, _ in active:
            run.close()
        for task in self.tasks:
            for seed in task.seeds:
                self._copy(task, seed)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _advanced(self, task: Task, run: Run, _: Wait) -> tuple[Task, Run, Wait] | None:
        """Go on with a task until it waits again; None when it is done, or cannot be trained."""
        try:
            return task, run, next(run)
        except StopIteration:
            return None
        except RuntimeError:
            print(f"{task.study.name} {task.arm}: given up", flush=True)
            traceback.print_exc()
            return None

    def _trained(self, task: Task) -> Run:
        """Train the runs of a task that are not finished, and write their rows."""
        study, arm = task.study, task.arm
        price, network, longest = self.prices[study.name, arm], None, 0.0
        for seed in task.seeds:
            if self._is_others(task, seed) or time.monotonic() + longest > self.deadline:
                continue
            config = config_of(study, arm, seed, price.width)
            if task.start is not None:
                start = self._weights(study, task.start, seed)
                while not start.exists():
                    yield None
                config = replace(config, pretrained=str(start))
            pictures = self._pictures_of(study, config)
            fresh = built(config, pictures.source)
            if network is None:
                begun = time.monotonic()
                self._make_room()
                epoch, validation = pictures.epoch(seed, 0), (pictures.val_images, pictures.val_labels)
                network = CapturedNetwork(built(config, pictures.source), config, epoch, validation)
                print(f"{study.name} {arm}: ready after {time.monotonic() - begun:.1f} s", flush=True)
            begun = time.monotonic()
            network.begin(fresh)
            outcomes = []
            for number in range(config.epochs):
                network.load(pictures.epoch(seed, number))
                yield network.train_epoch()
                outcomes.append(network.outcome())
            longest = max(longest, time.monotonic() - begun)
            if any(study.arms[other].get(START_FROM) == arm for other in study.arms):
                save_file({n: t.contiguous().cpu() for n, t in network.network.state_dict().items()},
                          self._weights(study, arm, seed))  # fmt: skip
            by_condition: dict[str, float] = {}
            if config.conditions and seed in study.seeds[:EVALUATED]:
                sets = self._sets(pictures, config.conditions)
                shares, done = network.validate_on(list(sets.values()))
                yield done
                by_condition = dict(zip(sets, shares.tolist(), strict=True))
            checks = self._checks(study, config, network)
            self._write(task, seed, config, pictures.source, outcomes, by_condition, checks, time.monotonic() - begun)

    def _row(self, task: Task, seed: int) -> StudyRow | None:
        """The row of a finished run, of this study or another one that has it in common."""
        rows = [row for row in self.runs.rows if (row["data"], row["settings"], int(row["seed"])) == task.key(seed)]
        mine = [row for row in rows if (row["study"], row["arm"]) == (task.study.name, task.arm)]
        return next(iter(mine or rows), None)

    def _is_others(self, task: Task, seed: int) -> bool:
        """Whether a run is finished, or for another study to train; not where this one asks for more than a row."""
        row = self._row(task, seed)
        if row is not None and row["study"] == task.study.name:
            return True
        says_more = task.study.routing_checks or any(START_FROM in arm for arm in task.study.arms.values())
        return not says_more and (row is not None or self._first[task.key(seed)] is not task)

    def _copy(self, task: Task, seed: int) -> None:
        """Write the row of a run that another study trained."""
        row = self._row(task, seed)
        if row is not None and row["study"] != task.study.name:
            self.runs.add(*{**row, "study": task.study.name, "arm": task.arm}.values())

    def _make_room(self) -> None:
        """Free what finished tasks have left behind once most of the device's memory is taken."""
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            if free < 0.4 * total:
                gc.collect()
                torch.cuda.empty_cache()

    def _weights(self, study: Study, arm: str, seed: int) -> Path:
        return self.weights / f"{study.name}-{arm}-{seed}.safetensors"

    def _pictures_of(self, study: Study, config: TrainConfig) -> Pictures:
        limits = config.limit_train, config.limit_val
        key = study.data, limits, config.conditions, config.random_crop, config.batch_size
        if key not in self._pictures:
            source = self.given[study.data].limited(*limits).under(config.conditions)
            self._pictures[key] = Pictures(source, config, self.device)
        return self._pictures[key]

    def _sets(self, pictures: Pictures, conditions: str) -> dict[str, torch.Tensor]:
        """All validation images under one condition, for each one that was trained on and those held out."""
        seen = conditions.split(",")
        found = {}
        for name in (*seen, *(name for name in HELD_OUT if name not in seen)):
            if (pictures, name) not in self._single:
                self._single[pictures, name] = pictures.all_under(name)
            found[name] = self._single[pictures, name]
        return found

    def _checks(self, study: Study, config: TrainConfig, network: CapturedNetwork) -> dict[str, str]:
        if not study.routing_checks or config.variant == NO_VARIANT:
            return dict.fromkeys(CHECKS, "")
        changes = (None, *CHECKS[1:])  # the first one changes nothing
        found = [network.share_right(COUNTERFACTUAL_IMAGES, change) for change in changes]
        return {name: f"{100 * share:.2f}" for name, share in zip(CHECKS, found, strict=True)}

    def _write(
        self, task: Task, seed: int, config: TrainConfig, source: Source, outcomes: Outcomes,
        by_condition: dict[str, float], checks: dict[str, str], wall_s: float,
    ) -> None:  # fmt: skip
        study, arm, price = task.study, task.arm, self.prices[task.study.name, task.arm]
        for number, (train_loss, val_loss, share) in enumerate(outcomes, 1):
            self.epochs.add(study.name, arm, seed, number, f"{train_loss:.4f}", f"{val_loss:.4f}", f"{100 * share:.2f}")
        seen = str(config.conditions).split(",")
        for name, share in by_condition.items():
            self.conditions.add(study.name, arm, seed, name, int(name in seen), f"{100 * share:.2f}")
        train_loss, val_loss, share = outcomes[-1]
        best = max(outcome[2] for outcome in outcomes)
        gpu = self.device.type == "cuda"
        self.runs.add(
            study.name, arm, config.model, config.variant, config.num_experts or "", price.width, seed, study.data,
            len(source.train), len(source.val), config.epochs, price.cost.params, price.cost.macs, f"{price.ratio:.4f}",
            f"{train_loss:.4f}", f"{val_loss:.4f}", f"{100 * share:.2f}", f"{100 * best:.2f}",
            *(checks[name] for name in CHECKS), f"{wall_s:.0f}",
            torch.cuda.get_device_name() if gpu else processor(), torch.get_num_threads(), torch.__version__,
            self.commit, datetime.now(timezone.utc).date().isoformat(), study.identity(arm),
        )  # fmt: skip
        print(f"{study.name} {arm} seed {seed}: {100 * share:.2f} %, {wall_s:.1f} s", flush=True)


def _is_waiting(wait: Wait) -> bool:
    return wait is not None and not wait.query()


def built(config: TrainConfig, source: Source) -> nn.Module:
    """The network of a run, with its first weights."""
    builder = NetworkBuilder(task_of(config), source)
    return builder.static() if config.variant == NO_VARIANT else builder.conditional()


def tasks_of(words: Sequence[str]) -> list[Task]:
    """One task for each arm of the studies "name" or "name:first-last" (seeds) that has runs which are not finished."""
    found = []
    for word in words:
        name, _, seeds = word.partition(":")
        study = read_study(HERE / f"{name}.yaml")
        first, _, last = seeds.partition("-")
        chosen = study.seeds if not seeds else tuple(s for s in study.seeds if int(first) <= s <= int(last or first))
        # A table has no weights: what another arm starts from is trained again.
        again = {arm.get(START_FROM) for arm in study.arms.values()}
        finished = [] if again - {None} else study.finished()
        for arm in study.arms:
            left = tuple(seed for seed in chosen if (arm, seed) not in finished)
            found += [Task(study, arm, left)] if left else []
    return found


def prepared(
    tasks: Sequence[Task], data: Path, pool: Executor
) -> tuple[dict[str, Source], dict[tuple[str, str], Price]]:
    """The decoded data sets, and what each arm costs; by several processes, before the device is touched."""
    names = dict.fromkeys(task.study.data for task in tasks)
    opened = {name: open_source(name if name in sources else str(data / name)) for name in names}
    arms = list({(task.study.name, task.arm): task for task in tasks}.values())
    prices = [pool.submit(priced, task.study, task.arm, opened[task.study.data].limited(1, 1)) for task in arms]
    given = {name: in_memory(source, pool) for name, source in opened.items()}
    return given, {(task.study.name, task.arm): price.result() for task, price in zip(arms, prices, strict=True)}


def main() -> None:
    """Train what fits into the time."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", help="names, each with :FIRST-LAST for some of its seeds")
    parser.add_argument(
        "--data", type=Path, default=Path("."), help="folder of the sets that have no name of their own"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/many"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--commit", default=None, help="of the source, where there is no git")
    given = parser.parse_args()
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # of streams that do not wait for one another
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    tasks = tasks_of(given.studies)
    fork = multiprocessing.get_context("fork")
    # One thread each: those of OpenMP do not survive a fork.
    with ProcessPoolExecutor(mp_context=fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        opened, prices = prepared(tasks, given.data, pool)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{len(tasks)} arms prepared after {time.monotonic() - started:.0f} s; {device}", flush=True)
    many = partial(ManyRuns, tasks, opened, prices, given.out, device, given.commit or commit())
    runs = many(started + 60 * given.minutes, given.streams)
    runs.run()
    print(f"{len(runs.runs.rows)} runs after {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
