"""`condconv sweep`: the runs of a study, one after another or on a cluster, each finished one a row of its table."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import Namespace

from condconv.cli.cluster import add_cluster, submit
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, BusyError, argument_error
from condconv.progress import progress_bar
from condconv.registry import unknown_name_message
from condconv.studies.study import Cell, Study, read_study


def make_parser() -> Parser:
    """The flags of `condconv sweep`."""
    parser = Parser(prog="condconv sweep", description="Train the networks of a study; finished runs are kept.")
    parser.add_argument("study", type=str, help="YAML file, as in benchmarks/accuracy")
    parser.add_argument("--data", type=str, default=None, help="the folder that the study is about, where it is one")
    parser.add_argument("--arms", type=str, nargs="+", default=None, metavar="ARM", help="these arms only")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, metavar="SEED", help="these seeds only")
    parser.add_argument("--threads", type=int, default=None, help="of each run (default: torch's)")
    parser.add_argument("--out", type=str, default="runs/sweep", help="folder of the run folders")
    add_cluster(parser)
    parser.add_argument("--list", action="store_true", default=False, help="say what is done and what is not run")
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Train what is not done; 0 where nothing failed."""
    settings = make_parser().parse_args(list(arguments))
    if settings.threads is not None and settings.threads < 1:
        raise argument_error("sweep", "--threads", settings.threads, "must be at least 1", "leave it out")
    study = read_study(Path(settings.study))
    cells = chosen(study, settings.arms, settings.seeds)
    if settings.list:
        for line in listing(study, cells):
            print(line)
        return 0

    # Imported here: --help, wrong options and --list answer without loading Lightning and timm.
    from condconv.signals import Interrupted, StopRequest
    from condconv.studies.sweep import Sweep, pending

    todo = pending(study, cells)
    print(f"{study.name}: {len(cells) - len(todo)} of {len(cells)} runs are done", flush=True)
    if todo and settings.cluster is not None:
        folder = Path(settings.out).expanduser() / "jobs"
        jobs = submit(list(calls(settings, todo)), settings.cluster, settings.cluster_options, folder)
        print(f"{len(jobs)} runs submitted, what they print is in {folder}; the same command submits what is not done")
        return 0
    with StopRequest() as stop, progress_bar("epochs") as progress:
        sweep = Sweep(study, settings.data, Path(settings.out), settings.threads, stop, progress)
        try:
            return run_all(sweep, todo)
        except Interrupted as interrupted:
            print(f"stopped; go on with the same command: condconv sweep {study.path}")
            return 0 if interrupted.signum == signal.SIGTERM else 130


def calls(settings: Namespace, todo: Sequence[Cell]) -> Iterator[list[str]]:
    """The sweep's own command for each run alone."""
    given = [(f"--{name}", getattr(settings, name)) for name in ("data", "threads", "out")]
    same = [str(word) for pair in given if pair[1] is not None for word in pair]
    for arm, seed in todo:
        yield ["sweep", settings.study, "--arms", arm, "--seeds", str(seed), *same]


def run_all(sweep, todo: Sequence[Cell]) -> int:  # type: ignore[no-untyped-def]
    """Run by run; one that fails does not keep the others from running."""
    from condconv.studies.sweep import RunFailed

    failed, seconds = 0, []
    for number, (arm, seed) in enumerate(todo, 1):
        sweep.stop.check()
        label = f"[{number}/{len(todo)}] {arm} seed {seed}:"
        started = time.monotonic()
        try:
            row = sweep.run((arm, seed))
        except BusyError as error:
            print(f"{label} left to another process: {error}", flush=True)
            continue
        except RunFailed as error:
            failed += 1
            print(f"{label} failed: {error}", flush=True)
            continue
        seconds.append(time.monotonic() - started)
        left = (len(todo) - number) * sum(seconds) / len(seconds) / 60
        score = sweep.study.score
        said = f"{score.study_title} {row[score.study_column]} {score.unit}"
        print(f"{label} {said}, {seconds[-1]:.0f} s; about {left:.0f} min left", flush=True)
    print(f"table: {sweep.study.results}")
    return 2 if failed else 0


def chosen(study: Study, arms: Sequence[str] | None, seeds: Sequence[int] | None) -> list[Cell]:
    """The runs of some arms and seeds. Raises `ArgumentError` for one that the study does not have."""
    for arm in arms or ():
        if arm not in study.arms:
            raise ArgumentError(f"--arms: {unknown_name_message('arm', arm, list(study.arms))}")
    for seed in seeds or ():
        if seed not in study.seeds:
            raise argument_error("sweep", "--seeds", seed, f"is not one of {study.seeds}", "the study file lists them")
    return [(arm, seed) for arm, seed in study.cells if (not arms or arm in arms) and (seeds is None or seed in seeds)]


def listing(study: Study, cells: Sequence[Cell]) -> Iterator[str]:
    """One line for each arm: which seeds are done; and the command for those that are not run."""
    for arm, done, missing in study.status(cells):
        yield f"{arm}: {len(done)} of {len(done) + len(missing)} done" + (
            f"; not run: {study.command([arm], missing)}" if missing else ""
        )
