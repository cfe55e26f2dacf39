"""The networks of a finished run folder, built again and with their trained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from condconv.data import ImageSet, Source, TensorImages
from condconv.errors import ArgumentError, CheckpointError
from condconv.models.loading import load_strictly, read_safetensors
from condconv.models.trained_on import note_images, noted_images
from condconv.reading import parse_json
from condconv.registry import unknown_name_message
from condconv.runs.building import CONDITIONAL, STATIC, WIDENED
from condconv.runs.folder import BEST, RunFolder
from condconv.runs.networks import build_network
from condconv.tasks import task_of
from condconv.tasks.base import Task


def trained_networks(path: Path) -> list[str]:
    """The names of a finished run's networks, and those names with "-best" for their best epochs."""
    last = [name for name in (CONDITIONAL, STATIC, WIDENED) if RunFolder(path).weights(name).exists()]
    return [*last, *(f"{name}{BEST}" for name in last if RunFolder(path).weights(f"{name}{BEST}").exists())]


def chosen_network(path: str | Path, network: str | None) -> str:
    """The name of the network to take from a run: the first that it has where None.

    Raises:
        CheckpointError: the run is not finished.
        ArgumentError: it has no network of that name.
    """
    path = Path(path).expanduser()
    known = trained_networks(path)
    if not known:
        raise CheckpointError(f"{path}: no trained weights in it; finish it with: condconv train --resume {path}")
    if network is not None and network not in known:
        raise ArgumentError(f"--network: {unknown_name_message('network', network, known)}")
    return network or known[0]


def load_run(path: Path, network: str | None = None) -> nn.Module:
    """A network of a run with its trained weights, which knows what it was trained on (`noted_images`).

    Raises:
        CheckpointError: not a finished run, or weights that are damaged or do not fit.
        ArgumentError: it has no network of that name.
    """
    name = chosen_network(path, network)
    source = stored_source(path, name, TensorImages(torch.empty(0), torch.empty(0, dtype=torch.int64), str(path)))
    model = trained_model(path, name, source)
    note_images(model, {
        "input_size": (source.channels, *source.image_size), "mean": source.mean, "std": source.std,
        "label_names": source.classes, "native": source.native,
    })  # fmt: skip
    return model


def task_of_run(path: Path) -> Task:
    """The task of a run, with its settings. `CheckpointError` where it is no run folder."""
    return task_of(RunFolder(path).read_config())


def load_trained(path: Path, network: str, source: Source) -> tuple[nn.Module, Source]:
    """Return a network of a run, and the data set as that network wants it (size, normalisation).

    A data set that is under no conditions is put under those of the run.

    Raises:
        CheckpointError: not a run folder, no such network in it, or weights that do not fit.
        ArgumentError: a data set of other classes.
    """
    model = load_run(path, network)
    source = as_trained(model, source, str(path))
    if source.conditions is None:
        source = source.under(RunFolder(path).read_config().conditions)
    return model, source


def as_trained(model: nn.Module, source: Source, where: str) -> Source:
    """A data set as a network wants it that knows what it was trained on; as it is for any other.

    Raises `ArgumentError` for a data set of other classes.
    """
    wanted = noted_images(model)
    if wanted is None:
        return source
    classes, size = wanted["label_names"], wanted["input_size"][1:]
    if source.classes != classes:
        raise ArgumentError(
            f"--data: {source.name} has {len(source.classes)} classes ({', '.join(source.classes[:3])}, …) and the "
            f"network of {where} was trained on {len(classes)} ({', '.join(classes[:3])}, …); pass data of those "
            "classes"
        )
    native = source.native and source.image_size == size
    return replace(source, image_size=size, native=native, mean=wanted["mean"], std=wanted["std"])


def unlabelled(model: nn.Module, images: ImageSet, name: str) -> Source:
    """Images as a network wants them; where its classes are not known, they are numbers.

    One that is from no run gets the size and normalisation of its architecture.
    """
    about: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = about.get("input_size") or (3, 224, 224)
    classes = about.get("label_names") or tuple(map(str, range(getattr(model, "num_classes", 1000))))
    mean, std = (tuple(about.get(of) or (0.5,) * channels) for of in ("mean", "std"))
    return Source(
        name, images, images, tuple(classes), channels, (height, width), native=about.get("native", False), flip=False,
        mean=mean, std=std,
    )  # fmt: skip


def stored_source(path: Path, network: str, images: ImageSet) -> Source:
    """Images of any origin as a network of a run wants them: its classes, size and normalisation.

    Raises:
        CheckpointError: no such network in the run folder, or its file is damaged.
    """
    about = metadata(_weights(path, network))
    try:
        channels, height, width = parse_json(about["input_shape"])
        return Source(
            path.name, images, images, tuple(parse_json(about["classes"])), channels, (height, width),
            native=parse_json(about.get("native", "false")), flip=False,
            mean=tuple(parse_json(about["mean"])), std=tuple(parse_json(about["std"])),
        )  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{_weights(path, network)}: does not say what it was trained on ({type(error).__name__}: {error}); train "
            "or copy it again"
        ) from error


def trained_model(path: Path, network: str, source: Source) -> nn.Module:
    """A network of a run with its trained weights, for the classes, channels and size of `stored_source`.

    Raises:
        CheckpointError: not a run folder, no such network in it, or weights that do not fit.
    """
    weights = _weights(path, network)
    name = network.removesuffix(BEST)
    config = replace(RunFolder(path).read_config(), twin=name == WIDENED)
    with torch.random.fork_rng(devices=[]):
        model = build_network(task_of(config), source, name)
    load_strictly(model, read_safetensors(weights), str(weights))
    return model


def _weights(path: Path, network: str) -> Path:
    weights = RunFolder(path).weights(network)
    if not weights.exists():
        raise CheckpointError(
            f"{path}: no {weights.name} in it; pass a run that is finished and has trained that network"
        )
    return weights


def metadata(weights: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file; `CheckpointError` where it cannot be read."""
    if not weights.exists():
        raise FileNotFoundError(2, "no such file", str(weights))
    try:
        with safe_open(weights, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{weights}: truncated or damaged ({error}); train or copy it again") from error
