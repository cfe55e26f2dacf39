"""The networks of a finished run folder, built again and with their trained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from condconv.data import ImageSet, Source
from condconv.errors import ArgumentError, CheckpointError
from condconv.models.loading import load_strictly, read_safetensors
from condconv.reading import parse_json
from condconv.runs.building import CONDITIONAL, STATIC, WIDENED
from condconv.runs.config import NO_VARIANT
from condconv.runs.folder import RunFolder
from condconv.runs.networks import plan_networks
from condconv.tasks import task_of
from condconv.tasks.base import Task


def trained_networks(path: Path) -> list[str]:
    """The names of a run's networks that have weights: of "conditional", "static" and "widened"."""
    return [name for name in (CONDITIONAL, STATIC, WIDENED) if RunFolder(path).weights(name).exists()]


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
    wanted = stored_source(path, network, source.val)
    if source.classes != wanted.classes:
        raise ArgumentError(
            f"--data: {source.name} has {len(source.classes)} classes ({', '.join(source.classes[:3])}, …) and the "
            f"network of {path} was trained on {len(wanted.classes)} ({', '.join(wanted.classes[:3])}, …); pass data "
            "of those classes"
        )
    native = source.native and source.image_size == wanted.image_size
    source = replace(source, image_size=wanted.image_size, native=native, mean=wanted.mean, std=wanted.std)
    if source.conditions is None:
        source = source.under(RunFolder(path).read_config().conditions)
    return trained_model(path, network, wanted), source


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
    # The trained weights replace those it began with, which may be gone.
    config = replace(RunFolder(path).read_config(), twin=network == WIDENED, upcycle_from=None)
    if network == STATIC:
        config = replace(config, variant=NO_VARIANT)
    model = next(spec for spec in plan_networks(task_of(config), source) if spec.name == network).build()
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
