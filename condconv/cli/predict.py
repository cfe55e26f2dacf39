"""`condconv predict`: what a network makes of images, folders and shards: a table of classes, restored images, …"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condconv.cli.network_argument import add_network, add_tta, check_numbers, check_tta, load_for_images
from condconv.cli.parser import Parser
from condconv.errors import argument_error
from condconv.progress import progress_bar
from condconv.runs.folder import is_run


def make_parser() -> Parser:
    """The flags of `condconv predict`."""
    parser = Parser(prog="condconv predict", description="Run a network on images; an interrupted call goes on.")
    add_network(parser, "a run folder, a folder of save_pretrained, an exported file, or a network's name")
    parser.add_argument("images", type=str, nargs="+", help="image files, tar shards, or folders of either")
    parser.add_argument(
        "--out", type=str, default=None, metavar="PATH",
        help="classes: a table, .csv or .parquet (default: predictions.csv); restored images: a folder (restored)",
    )  # fmt: skip
    add_tta(parser)
    parser.add_argument("--top-k", type=int, default=5, help="classes for each image")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Load, classify, write, and say what there is."""
    settings = make_parser().parse_args(list(arguments))
    check_numbers("predict", settings.batch_size, settings.workers)
    if settings.top_k < 1:
        raise argument_error("predict", "--top-k", settings.top_k, "must be at least 1", "the default is 5")

    # Imported here: --help and wrong options answer without loading timm.
    from condconv.cli.network_argument import task_for
    from condconv.data import default_workers
    from condconv.data.inputs import open_inputs
    from condconv.devices import resolve_device
    from condconv.runs.trained import chosen_network
    from condconv.tasks.base import Request

    if is_run(settings.model):
        chosen_network(settings.model, settings.network)
    task = task_for(settings.model, None)
    check_tta("predict", task, settings.tta)
    out = Path(settings.out or task.predictions).expanduser()
    task.check_output(out)
    device = resolve_device(settings.device)
    images, problems = open_inputs(settings.images, skip_bad=settings.skip_bad_images)
    network, source = load_for_images(settings.model, settings.network, images, settings.pretrained)
    images.set_channels(source.channels)
    few = len(images) <= settings.batch_size  # not worth starting processes for
    workers = settings.workers if settings.workers is not None else 0 if few else default_workers(source)
    try:
        with progress_bar("images") as progress:
            damaged = task.predict(
                Request(
                    network, source, out, settings.top_k, settings.batch_size, workers, device,
                    settings.skip_bad_images, settings.tta, progress,
                )
            )  # fmt: skip
    except KeyboardInterrupt:
        print("what is done is kept; go on with the same command")
        raise
    for problem in [*problems, *(f"{name}: cannot be decoded, {task.left_out}" for name in damaged)]:
        print(f"notice: {problem}")
    print(f"{len(images):,} images, {len(damaged) + len(problems)} damaged: {out}")
    return 0
