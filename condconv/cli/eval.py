"""`condconv eval`: what a trained network gets right and wrong on labelled images."""

from __future__ import annotations

from collections.abc import Sequence

from condconv.cli.network_argument import DATA_HELP, add_network, add_tta, check_numbers, check_tta, load_for_data
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, argument_error
from condconv.progress import progress_bar
from condconv.runs.folder import is_run


def make_parser() -> Parser:
    """The flags of `condconv eval`."""
    parser = Parser(prog="condconv eval", description="Evaluate a network on the validation images of a data set.")
    add_network(parser)
    parser.add_argument("--data", type=str, default=None, help=f"{DATA_HELP}; a run's own where left out")
    parser.add_argument(
        "--conditions", type=str, default=None, metavar="NAMES",
        help="put the images under these, as --conditions of train does; a run's own where left out",
    )  # fmt: skip
    add_tta(parser)
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="a random N of the validation images")
    parser.add_argument("--out", type=str, default="evaluation", metavar="FOLDER", help="a new number if it exists")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Load, evaluate, write, and say the numbers."""
    settings = make_parser().parse_args(list(arguments))
    check_numbers("eval", settings.batch_size, settings.workers)
    if settings.limit is not None and settings.limit < 1:
        raise argument_error("eval", "--limit", settings.limit, "must be at least 1", "pass --limit 1 or more")
    if settings.data is None and not is_run(settings.model):
        raise ArgumentError("--data is missing; pass fashion-mnist, digits or a folder of labelled images")

    # Imported here: --help and wrong options answer without loading timm and matplotlib.
    from condconv.cli.network_argument import task_for
    from condconv.data import default_workers
    from condconv.devices import resolve_device
    from condconv.evaluation.evaluate import evaluate
    from condconv.runs.trained import chosen_network

    device = resolve_device(settings.device)
    if is_run(settings.model):
        chosen_network(settings.model, settings.network)
    task = task_for(settings.model, settings.data)
    check_tta("eval", task, settings.tta)
    source = task.open(settings.data or task.config.data, skip_bad=settings.skip_bad_images)
    source = source.limited(None, settings.limit).under(settings.conditions)
    network, source, title = load_for_data(settings.model, settings.network, source, settings.pretrained)
    workers = default_workers(source) if settings.workers is None else settings.workers
    with progress_bar("images") as progress:
        found = evaluate(
            network, source, task, batch_size=settings.batch_size, workers=workers, device=device,
            skip_bad=settings.skip_bad_images, tta=settings.tta, progress=progress,
        )  # fmt: skip
    folder = task.write_evaluation(settings.out, title, source, found)
    print(task.headline(found.found))
    left_out = len(found.damaged) + len(source.skipped)
    if left_out:
        print(f"notice: left out {left_out} damaged samples, listed in {folder / 'summary.md'}")
    print(f"evaluation: {folder}")
    return 0
