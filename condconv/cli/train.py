"""`condconv train`: flags, or the same names in a YAML file, to a run folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from condconv.cli.parser import Parser
from condconv.cli.settings import add_settings, completed, parse, present_flags
from condconv.errors import ArgumentError, CondConvError
from condconv.runs.config import TrainConfig
from condconv.tasks import task_named_by

if TYPE_CHECKING:
    from condconv.data import Source


def make_parser() -> Parser:
    """One flat flag for each field of `TrainConfig`, and those that are about this call alone."""
    parser = Parser(
        prog="condconv train",
        usage="condconv train --data DATA [options]",
        print_config=None,
        description="Train a conditional network beside its static twins.",
    )
    add_settings(parser)
    parser.add_argument(
        "--resume", nargs="?", const="", default=None, metavar="RUN",
        help="go on with a run (a folder, or a name in --out); without RUN with the newest unfinished one",
    )  # fmt: skip
    parser.add_argument(
        "--fast-dev-run", action="store_true", default=False, help="a few steps of everything, to see that it works"
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Parse, train, and say where the results are."""
    calls, given = parse(make_parser(), present_flags(arguments))
    settings = completed(given)
    if calls["print_config"]:
        print(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}, sort_keys=False))
        return 0
    resume = calls["resume"]
    if resume is None and settings["data"] is None:
        raise ArgumentError("--data is missing; pass fashion-mnist, digits or a folder, or go on with a run: --resume")
    if resume is not None and calls["fast_dev_run"]:
        raise ArgumentError("--fast-dev-run: a resumed run keeps its settings; start a new one")

    if resume is None and settings["task"] is None and (named := task_named_by(settings["data"])) is not None:
        given["task"] = named
        settings = completed(given)
    source = None
    if resume is None and settings["recipe"] is None and "model" not in given:
        recipe, source = recipe_for(settings)
        settings = completed({**given, **recipe})

    # Imported here: --help and wrong options answer without loading Lightning and timm.
    from condconv.runs.folder import RunFolder, find_run
    from condconv.signals import Interrupted, StopRequest
    from condconv.training.console import RunConsole
    from condconv.training.experiment import Experiment, Processes, resumed_config

    processes = Processes.from_environment()
    first = processes.rank == 0
    console = RunConsole(quiet=not first)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        if resume is not None:
            path = find_run(resume, settings["out"])
            folder = RunFolder.existing(path) if first else RunFolder(path)
            stack.callback(folder.close)
            config = resumed_config(folder.read_config(), given)
            if folder.summary.exists():
                console.notice(f"notice: {path} is finished already; see {folder.summary}")
                return 0
            experiment = Experiment(config, stop, console)
        else:
            config = TrainConfig(**settings)
            if calls["fast_dev_run"]:
                config = config.shortened(processes.world_size)
            experiment = Experiment(config, stop, console, source)
            folder = RunFolder.create(config) if first else RunFolder(Path(config.out))
            stack.callback(folder.close)
        console.notice(f"run folder: {folder.path}")
        try:
            table = experiment.run(folder)
        except Interrupted as interrupted:
            console.notice(f"stopped; go on with: condconv train --resume {folder.path}")
            # SIGTERM is how a scheduler asks for a clean end, and this is one.
            return 0 if interrupted.signum == signal.SIGTERM else 130
        except CondConvError:
            if first and resume is None:
                folder.discard_unstarted()
            raise
    if first:
        console.table(f"\n{table}\n\nsummary and pictures: {folder.path}")
    return 0


def recipe_for(settings: dict[str, Any]) -> tuple[dict[str, str], Source]:
    """Where no model is named: the recipe that the task has for such data, if any, and the data set."""
    from condconv.tasks import task_of

    task = task_of(TrainConfig(**settings))
    source = task.open(settings["data"], skip_bad=settings["skip_bad_images"])
    recipe = task.recipe(source)
    if recipe is None:
        return {}, source
    if os.environ.get("RANK", "0") == "0":
        side = settings["input_size"] or min(source.image_size)
        print(f"notice: images of {side} pixels, no --model: recipe {recipe}; --model or --recipe names another")
    return {"recipe": recipe}, source


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
