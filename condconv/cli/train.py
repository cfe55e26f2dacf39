"""`condconv train`: flags, or the same names in a YAML file, to a run folder."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import ActionYesNo

from condconv.cli.parser import Parser
from condconv.errors import ArgumentError
from condconv.training.config import TrainConfig
from condconv.training.rules import flag


def make_parser() -> Parser:
    """One flat flag for each field of `TrainConfig`, and those that are about this call alone."""
    parser = Parser(prog="condconv train", description="Train a conditional network beside its static twins.")
    parser.add_argument("--config", action="config", help="YAML file with the same names as the flags")
    hints = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        default = None if field.default is MISSING else field.default
        name, text = f"--{flag(field.name)}", field.metadata["help"]
        if hints[field.name] is bool:
            parser.add_argument(name, action=ActionYesNo(no_prefix="no-"), default=default, help=text)
        else:
            # None stands for "not given" only as a default, so `int | None` is an int on the command line.
            kind = next(kind for kind in (get_args(hints[field.name]) or (hints[field.name],)) if kind is not NoneType)
            parser.add_argument(name, type=kind, default=default, help=text)
    parser.add_argument(
        "--resume", nargs="?", const="", default=None, metavar="RUN",
        help="go on with a run (a folder, or a name in --out); without RUN with the newest unfinished one",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Parse, train, and say where the results are."""
    parser = make_parser()
    settings = parse(parser, arguments)
    resume = settings.pop("resume")
    settings.pop("debug")
    if resume is None and settings["data"] is None:
        raise ArgumentError("--data is missing; pass fashion-mnist, digits or a folder, or go on with a run: --resume")

    # Imported here: --help and wrong options answer without loading Lightning and timm.
    from condconv.training.console import RunConsole
    from condconv.training.experiment import Experiment, Processes, resumed_config
    from condconv.training.interruption import Interrupted, StopRequest
    from condconv.training.run_folder import RunFolder, find_run

    first = Processes.from_environment().rank == 0
    console = RunConsole(quiet=not first)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        if resume is not None:
            path = find_run(resume, settings["out"])
            folder = RunFolder.existing(path) if first else RunFolder(path)
            stack.callback(folder.close)
            config = resumed_config(folder.read_config(), given(parser, arguments))
            if folder.summary.exists():
                console.notice(f"notice: {path} is finished already; see {folder.summary}")
                return 0
            experiment = Experiment(config, stop, console)
        else:
            config = TrainConfig(**settings)
            experiment = Experiment(config, stop, console)
            folder = RunFolder.create(config) if first else RunFolder(Path(config.out))
            stack.callback(folder.close)
        console.notice(f"run folder: {folder.path}")
        try:
            table = experiment.run(folder)
        except Interrupted as interrupted:
            console.notice(f"stopped; go on with: condconv train --resume {folder.path}")
            # SIGTERM is how a scheduler asks for a clean end, and this is one.
            return 0 if interrupted.signum == signal.SIGTERM else 130
    if first:
        console.table(f"\n{table}\n\nsummary and pictures: {folder.path}")
    return 0


def parse(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """All settings by field name, defaults included."""
    namespace = parser.parse_args(list(arguments))
    return {name.replace("-", "_"): value for name, value in vars(namespace).items() if name not in ("config",)}


def given(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings that the command line or its YAML file names."""
    namespace = parser.parse_args(list(arguments), defaults=False)
    known = {field.name for field in fields(TrainConfig)}
    return {name: value for name, value in vars(namespace).items() if name in known and value is not None}


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
