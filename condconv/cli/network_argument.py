"""What `eval`, `predict` and `analyze` share: a trained network named on the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from condconv.cli.models_argument import KINDS, add_name, load_model
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, argument_error
from condconv.exporting.formats import is_exported
from condconv.runs.folder import is_run

if TYPE_CHECKING:
    from torch import nn

    from condconv.data import ImageSet, Source
    from condconv.tasks.base import Task

DATA_HELP = "fashion-mnist, digits, a folder (train/ and val/, tar shards, IDX files) or the URL of a folder of shards"


def add_network(parser: Parser, kinds: str = KINDS) -> None:
    """Add the arguments that name a network, and how to run it; `kinds` says what may be named."""
    add_name(parser, kinds)
    parser.add_argument("--pretrained", action="store_true", default=False, help="published weights, for a name")
    parser.add_argument("--batch-size", type=int, default=128, help="images of one step")
    parser.add_argument("--workers", type=int, default=None, help="loader processes")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--skip-bad-images", action="store_true", default=False, help="leave out damaged images")
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")


def add_tta(parser: Parser) -> None:
    """Add the flag for test-time augmentation."""
    parser.add_argument(
        "--tta", action="store_true", default=False, help="answer with the mean over each image and its mirror image"
    )


def check_tta(verb: str, task: Task, tta: bool) -> None:
    """Raise `ArgumentError` where the mean over mirror images is asked of a task that has none."""
    if tta and not task.averages:
        raise argument_error(verb, "--tta", tta, f"says nothing to --task {task.name}", "leave it out")


def check_numbers(verb: str, batch_size: int, workers: int | None) -> None:
    """Raise `ArgumentError` for a batch size or a number of workers that cannot be."""
    if batch_size < 1:
        raise argument_error(verb, "--batch-size", batch_size, "must be at least 1", "pass --batch-size 1 or more")
    if workers is not None and workers < 0:
        raise argument_error(verb, "--workers", workers, "must not be negative", "pass --workers 0 or more")


def task_for(model: str, data: str | None) -> Task:
    """The task of a network named on the command line: that of its run, classification for others."""
    from condconv.runs.config import TrainConfig
    from condconv.runs.trained import task_of_run
    from condconv.tasks import task_of

    return task_of_run(Path(model).expanduser()) if is_run(model) else task_of(TrainConfig(data=data or ""))


def load_for_data(model: str, network: str | None, source: Source, pretrained: bool) -> tuple[nn.Module, Source, str]:
    """Return a network, a labelled set as that network wants it, and a title.

    Raises:
        CondConvError: no such network, or one for other images or classes.
    """
    from condconv.analysis.analyze import require_channels
    from condconv.runs.trained import chosen_network, load_trained

    path = Path(model).expanduser()
    if is_run(model):
        name = chosen_network(model, network)
        loaded, source = load_trained(path, name, source)
        title = f"{path.name}, {name}"
    else:
        loaded, source = load_named(model, source, pretrained, network)
        title = path.name
    require_channels(loaded, source)
    return loaded, source, title


def load_for_images(model: str, network: str | None, images: ImageSet, pretrained: bool) -> tuple[nn.Module, Source]:
    """Return a network, and images without labels as that network wants them; unnamed classes are numbers.

    Raises:
        CondConvError: no such network, one that is not trained, or an exported one that does not classify.
    """
    from condconv.exporting import ExportedNetwork
    from condconv.runs.trained import unlabelled

    path = Path(model).expanduser()
    if is_exported(path):
        exported = ExportedNetwork(path)
        return exported, exported.source(images)
    if not path.is_dir() and not pretrained:
        raise ArgumentError(f"{model}: has no weights; pass a run folder, a folder of save_pretrained, or --pretrained")
    loaded = load_model(model, network) if path.is_dir() else load_model(model, network, pretrained=True)
    return loaded, unlabelled(loaded, images, path.name)


def load_named(
    name: str, source: Source, pretrained: bool, network: str | None = None
) -> tuple[nn.Module, Source]:
    """Return a saved network, or a network of the zoo for the classes and channels of the data.

    Published weights come with the classes, size and normalisation that they were trained with.

    Raises:
        ArgumentError: no such network.
    """
    if Path(name).expanduser().is_dir():
        from condconv.runs.trained import as_trained

        model = load_model(name, network)
        return model, as_trained(model, source, name)
    if not pretrained:
        return load_model(name, network, num_classes=len(source.classes), in_chans=source.channels), source
    model = load_model(name, network, pretrained=True)
    published = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = published.get("input_size") or (source.channels, *source.image_size)
    return model, dataclasses.replace(
        source,
        image_size=(height, width),
        mean=tuple(published.get("mean") or source.mean),
        std=tuple(published.get("std") or source.std),
    )
