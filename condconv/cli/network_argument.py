"""What `eval`, `predict`, `analyze` and `benchmark` share: a trained network named on the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condconv.cli.models_argument import input_size, load_model
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, CheckpointError, argument_error
from condconv.exporting.formats import is_exported
from condconv.registry import unknown_name_message

if TYPE_CHECKING:
    from torch import nn

    from condconv.data import ImageSet, Source
    from condconv.tasks.base import Task

_RUN_CONFIG = "config.yaml"
DATA_HELP = "fashion-mnist, digits, a folder (train/ and val/, tar shards, IDX files) or the URL of a folder of shards"


def add_network(parser: Parser, kinds: str = "a run folder, a folder of save_pretrained, or a network's name") -> None:
    """Add the arguments that name a network, and how to run it; `kinds` says what may be named."""
    parser.add_argument("model", type=str, help=kinds)
    parser.add_argument(
        "--network", type=str, default=None, metavar="NAME",
        help="of a run: conditional, static or widened (default: the first of them that it has)",
    )  # fmt: skip
    parser.add_argument("--pretrained", action="store_true", default=False, help="published weights, for a name")
    parser.add_argument("--batch-size", type=int, default=128, help="images of one step")
    parser.add_argument("--workers", type=int, default=None, help="loader processes")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--skip-bad-images", action="store_true", default=False, help="leave out damaged images")
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")


def check_numbers(verb: str, batch_size: int, workers: int | None) -> None:
    """Raise `ArgumentError` for a batch size or a number of workers that cannot be."""
    if batch_size < 1:
        raise argument_error(verb, "--batch-size", batch_size, "must be at least 1", "pass --batch-size 1 or more")
    if workers is not None and workers < 0:
        raise argument_error(verb, "--workers", workers, "must not be negative", "pass --workers 0 or more")


def is_run(model: str) -> bool:
    """Whether it is a folder of `condconv train`."""
    return (Path(model).expanduser() / _RUN_CONFIG).is_file()


def task_for(model: str, data: str | None) -> Task:
    """The task of a network named on the command line: that of its run, classification for others."""
    from condconv.runs.config import TrainConfig
    from condconv.runs.trained import task_of_run
    from condconv.tasks import task_of

    return task_of_run(Path(model).expanduser()) if is_run(model) else task_of(TrainConfig(data=data or ""))


def chosen_network(model: str, network: str | None) -> str:
    """The name of the network to take from a run.

    Raises:
        CheckpointError: the run is not finished.
        ArgumentError: it has no network of that name.
    """
    from condconv.runs.trained import trained_networks

    path = Path(model).expanduser()
    known = trained_networks(path)
    if not known:
        raise CheckpointError(f"{path}: no trained weights in it; finish it with: condconv train --resume {path}")
    if network is not None and network not in known:
        raise ArgumentError(f"--network: {unknown_name_message('network', network, known)}")
    return network or known[0]


def load_for_data(model: str, network: str | None, source: Source, pretrained: bool) -> tuple[nn.Module, Source, str]:
    """Return a network, a labelled set as that network wants it, and a title.

    Raises:
        CondConvError: no such network, or one for other images or classes.
    """
    from condconv.analysis.analyze import require_channels
    from condconv.runs.trained import load_trained

    path = Path(model).expanduser()
    if is_run(model):
        name = chosen_network(model, network)
        loaded, source = load_trained(path, name, source)
        title = f"{path.name}, {name}"
    else:
        loaded, source = load_named(model, source, pretrained)
        title = path.name
    require_channels(loaded, source)
    return loaded, source, title


def load_for_images(model: str, network: str | None, images: ImageSet, pretrained: bool) -> tuple[nn.Module, Source]:
    """Return a network, and images without labels as that network wants them; unnamed classes are numbers.

    Raises:
        CondConvError: no such network, or one that is not trained.
    """
    from condconv.data import Source
    from condconv.runs.trained import stored_source, trained_model

    path = Path(model).expanduser()
    if is_run(model):
        name = chosen_network(model, network)
        source = stored_source(path, name, images)
        return trained_model(path, name, source), source
    if is_exported(path):
        return load_exported(path, images)
    if not path.is_dir() and not pretrained:
        raise ArgumentError(f"{model}: has no weights; pass a run folder, a folder of save_pretrained, or --pretrained")
    loaded = load_model(model) if path.is_dir() else load_model(model, pretrained=True)
    published = getattr(loaded, "pretrained_cfg", None) or {}
    channels, height, width = published.get("input_size") or (3, 224, 224)
    classes = tuple(str(label) for label in range(getattr(loaded, "num_classes", 1000)))
    mean, std = (tuple(published.get(name) or (0.5,) * channels) for name in ("mean", "std"))
    return loaded, Source(
        path.name, images, images, classes, channels, (height, width), native=False, flip=False, mean=mean, std=std
    )


def load_exported(path: Path, images: ImageSet) -> tuple[nn.Module, Source]:
    """Return an exported network in its runtime, and images without labels as it wants them.

    Raises:
        CondConvError: the file cannot be opened, or does not classify.
    """
    from condconv.data import Source
    from condconv.exporting import ExportedNetwork

    network = ExportedNetwork(path)
    about = network.about
    if not about.classes:
        raise ArgumentError(f"{path}: {about.name} gives no scores of classes; run it with its runtime")
    channels, height, width = about.input_size
    return network, Source(
        path.name, images, images, about.classes, channels, (height, width), native=about.native, flip=False,
        mean=about.mean, std=about.std,
    )  # fmt: skip


def load_alone(model: str, network: str | None, **arguments: Any) -> tuple[nn.Module, tuple[int, ...], str]:
    """Return a network without data, the size (C, H, W) of its images, and a title.

    Args:
        model: as on the command line.
        network: of a run, or None for the first that it has.
        **arguments: of `create_model`, for a name.

    Raises:
        CondConvError: no such network.
    """
    if not is_run(model):
        loaded = load_model(model, **arguments)
        return loaded, input_size(None, loaded), Path(model).expanduser().name
    loaded, source, title = load_run(model, network)
    return loaded, (source.channels, *source.image_size), title


def load_run(model: str, network: str | None) -> tuple[nn.Module, Source, str]:
    """Return a network of a run, what the run knows of its images, without any, and a title.

    Raises:
        CondConvError: no such network.
    """
    import torch

    from condconv.data import TensorImages
    from condconv.runs.trained import stored_source, trained_model

    path, name = Path(model).expanduser(), chosen_network(model, network)
    none = TensorImages(torch.empty(0), torch.empty(0, dtype=torch.int64), model)
    source = stored_source(path, name, none)
    return trained_model(path, name, source), source, f"{path.name}, {name}"


def load_named(name: str, source: Source, pretrained: bool) -> tuple[nn.Module, Source]:
    """Return a saved network, or a network of the zoo for the classes and channels of the data.

    Published weights come with the classes, size and normalisation that they were trained with.

    Raises:
        ArgumentError: no such network.
    """
    if Path(name).expanduser().is_dir():
        return load_model(name), source
    if not pretrained:
        return load_model(name, num_classes=len(source.classes), in_chans=source.channels), source
    model = load_model(name, pretrained=True)
    published = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = published.get("input_size") or (source.channels, *source.image_size)
    return model, dataclasses.replace(
        source,
        image_size=(height, width),
        mean=tuple(published.get("mean") or source.mean),
        std=tuple(published.get("std") or source.std),
    )
