"""`condconv compress`: a network in a smaller file, as far as its score allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from condconv.arguments import number
from condconv.cli.network_argument import DATA_HELP, add_network, check_numbers, load_for_data
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, argument_error
from condconv.runs.folder import is_run

if TYPE_CHECKING:
    from torch import nn


def make_parser() -> Parser:
    """The flags of `condconv compress`."""
    parser = Parser(
        prog="condconv compress",
        description="Make a network's file small: layers static where routing hardly matters, fewer kernels, fewer "
        "bits. Routing is recorded on training images; the score on validation images says how far to go.",
    )
    add_network(parser)
    parser.add_argument("--data", type=str, default=None, help=f"{DATA_HELP}; a run's own where left out")
    parser.add_argument("--out", type=str, default="compressed", metavar="FOLDER", help="a new number if it exists")
    parser.add_argument("--max-loss", type=float, default=0.1, metavar="POINTS", help="by which the score may fall")
    parser.add_argument(
        "--max-size", type=float, default=None, metavar="MB", help="of the weights (default: the static network's)"
    )
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="a random N of the validation images")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Load, compress, write, and say what came of it."""
    settings = make_parser().parse_args(list(arguments))
    check_numbers("compress", settings.batch_size, settings.workers)
    if settings.limit is not None and settings.limit < 1:
        raise argument_error("compress", "--limit", settings.limit, "must be at least 1", "pass --limit 1 or more")
    if settings.max_size is not None:
        number("compress", "--max-size", settings.max_size, above=0, remedy="pass a size in MB")
    if settings.data is None and not is_run(settings.model):
        raise ArgumentError("--data is missing; pass fashion-mnist, digits or a folder of labelled images")

    # Imported here: --help and wrong options answer without loading timm and matplotlib.
    from condconv.cli.network_argument import task_for
    from condconv.compression import compress
    from condconv.compression.verb import MOST_EXAMPLES
    from condconv.data import default_workers
    from condconv.devices import resolve_device
    from condconv.evaluation.evaluate import evaluate, evaluation_loader
    from condconv.files import require_writable, whole_folder
    from condconv.models import save_pretrained

    require_writable(settings.out)
    device = resolve_device(settings.device)
    task = task_for(settings.model, settings.data)
    source = task.open(settings.data or task.config.data, skip_bad=settings.skip_bad_images)
    source = source.limited(MOST_EXAMPLES, settings.limit)
    network, source, title = load_for_data(settings.model, settings.network, source, settings.pretrained)
    workers = default_workers(source) if settings.workers is None else settings.workers
    how = {"batch_size": settings.batch_size, "workers": workers, "skip_bad": settings.skip_bad_images}

    def score(made: nn.Module) -> float:
        found = evaluate(made, source, task, device=device, **how).found
        return task.score.factor * float(found.score)

    # As they are evaluated, not as they are augmented in training.
    seen = task.view(dataclasses.replace(source, val=source.train), train=False, skip_bad=settings.skip_bad_images)
    loader = evaluation_loader(seen, task, settings.batch_size, workers)
    limit = None if settings.max_size is None else max(1, int(1e6 * settings.max_size))
    done = compress(network.to(device), loader, max_loss=settings.max_loss, max_bytes=limit, score=score)
    size = (source.channels, *source.image_size)
    metrics = {f"{task.score.title} on {source.name}, {task.score.unit}": done.steps[-1].score}
    with whole_folder(settings.out) as folder:
        save_pretrained(done.network, folder.path, input_size=size, metrics=metrics, data=source.name)
        done.write_csv(folder.path / "compression.csv")
        (folder.path / "compression.png").write_bytes(done.picture())
    print(f"{title}, {task.score.title} in {task.score.unit}")
    print(done)
    print(f"network: {folder.path}")
    return 0
