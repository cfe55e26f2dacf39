"""`condconv analyze`: what the experts of a network do on a data set, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condconv.cli.network_argument import DATA_HELP, load_named
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, argument_error
from condconv.progress import progress_bar
from condconv.runs.folder import is_run


def make_parser() -> Parser:
    """The flags of `condconv analyze`."""
    parser = Parser(prog="condconv analyze", description="Report what the experts of a network do on a data set.")
    parser.add_argument("model", type=str, help="a run folder, a folder of save_pretrained, or a network's name")
    parser.add_argument("--data", type=str, default=None, help=f"{DATA_HELP}; a run's own where left out")
    parser.add_argument("--out", type=str, default="report", metavar="FOLDER", help="a new number if it exists")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="a random N of the validation images")
    parser.add_argument("--layers", type=str, nargs="+", default=None, metavar="LAYER", help="depths of the figures")
    parser.add_argument(
        "--classes", type=str, nargs="+", default=None, metavar="CLASS", help="classes to set side by side"
    )
    parser.add_argument(
        "--runs", type=str, nargs="+", default=None, metavar="RUN",
        help="run folders for accuracy against multiply-adds and training curves, besides the run that is analysed",
    )  # fmt: skip
    parser.add_argument("--pretrained", action="store_true", default=False, help="published weights, for a name")
    parser.add_argument("--workers", type=int, default=None, help="loader processes")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Load, analyse, write, and say where the report is."""
    settings = make_parser().parse_args(list(arguments))
    if settings.limit is not None and settings.limit < 1:
        raise argument_error("analyze", "--limit", settings.limit, "must be at least 1", "pass --limit 1 or more")
    if settings.workers is not None and settings.workers < 0:
        raise argument_error("analyze", "--workers", settings.workers, "must not be negative", "pass 0 or more")
    path = Path(settings.model).expanduser()
    if settings.data is None and not is_run(settings.model):
        raise ArgumentError("--data is missing; pass fashion-mnist, digits or a folder of labelled images")

    # Imported here: --help and wrong options answer without loading timm and matplotlib.
    from condconv.analysis import analyze
    from condconv.analysis.curves import MEASURED
    from condconv.cli.network_argument import task_for
    from condconv.cli.run_argument import recorded_networks
    from condconv.data import open_source
    from condconv.devices import resolve_device
    from condconv.runs.building import CONDITIONAL
    from condconv.runs.trained import load_trained

    device = resolve_device(settings.device)
    task = task_for(settings.model, settings.data)
    folders = [Path(name).expanduser() for name in settings.runs or ()]
    if is_run(settings.model):
        folders.insert(0, path)
        source = task.open(settings.data or task.config.data, skip_bad=True)
        model, source = load_trained(path, CONDITIONAL, source)
    else:
        model, source = load_named(settings.model, open_source(settings.data, skip_bad=True), settings.pretrained)
    of_accuracy = task.score.column in MEASURED
    recorded = [network for folder in dict.fromkeys(folders) if of_accuracy for network in recorded_networks(folder)]
    with progress_bar("images") as progress:
        report = analyze(
            model.to(device), source, settings.out, title=path.name, limit=settings.limit, workers=settings.workers,
            runs=recorded, layers=settings.layers, classes=settings.classes, task=task, progress=progress,
        )  # fmt: skip
    print(f"report: {report / 'report.html'}")
    return 0
