"""`condconv lr-find`: a sweep of the learning rate, as CSV and picture, and a suggestion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condconv.cli.parser import Parser
from condconv.cli.settings import add_settings, completed, parse
from condconv.errors import ArgumentError, argument_error
from condconv.runs.config import TrainConfig


def make_parser() -> Parser:
    """The settings of a run, and the range of the sweep."""
    parser = Parser(
        prog="condconv lr-find",
        print_config=None,
        description="Train for some steps with a growing learning rate, and suggest one. Takes all settings of train.",
    )
    add_settings(parser)
    parser.add_argument("--lowest", type=float, default=1e-5, help="learning rate of the first step")
    parser.add_argument("--highest", type=float, default=10.0, help="learning rate of the last step")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps; it ends earlier if the loss blows up")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Sweep, write `lr-find.csv` and `lr-find.png` into a folder of --out, and print the suggestion."""
    calls, given = parse(make_parser(), arguments)
    settings = completed(given)
    lowest, highest, steps = calls["lowest"], calls["highest"], calls["steps"]
    if not 0 < lowest < highest < float("inf"):
        raise argument_error("lr-find", "lowest", lowest, f"must be above 0 and below --highest {highest}", "swap them")
    if steps < 10:
        raise argument_error("lr-find", "steps", steps, "must be at least 10", "the default is 100")
    if settings["data"] is None:
        raise ArgumentError("--data is missing; pass fashion-mnist, digits or a folder")
    config = TrainConfig(**settings)

    # Imported here: --help and wrong options answer without loading Lightning and timm.
    from condconv.files import Lock, write_bytes, write_text
    from condconv.runs.figures import learning_rate_sweep
    from condconv.signals import StopRequest
    from condconv.training.console import RunConsole
    from condconv.training.experiment import Experiment, Processes
    from condconv.training.lr_find import doubt, suggestion, sweep, to_csv

    if Processes.from_environment().world_size > 1:
        raise ArgumentError("lr-find: started by torchrun; run it in one process, with --accumulate in place of others")
    points = sweep(Experiment(config, StopRequest(), RunConsole()), lowest, highest, steps)
    best = suggestion(points)
    folder = Path(config.out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = (folder / f"{config.run_name}-lr-find.{kind}" for kind in ("csv", "png"))
    with Lock(folder / f".{config.run_name}-lr-find.lock", str(table)):
        write_text(table, to_csv(points))
        write_bytes(picture, learning_rate_sweep([p.lr for p in points], [p.loss for p in points],
                                                 [p.smoothed for p in points], best))  # fmt: skip
    print(f"suggestion: --lr {best:.2g}" + ("" if config.base_batch is None else " without --base-batch"))
    if (why := doubt(points)) is not None:
        print(f"notice: {why}")
    print(f"{len(points)} steps: {table}, {picture}")
    return 0
