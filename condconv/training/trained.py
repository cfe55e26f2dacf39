"""The networks of a finished run folder, built again and with their trained weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from condconv.data import Source
from condconv.errors import ArgumentError, CheckpointError
from condconv.models.loading import load_strictly, read_safetensors
from condconv.training.building import CONDITIONAL, STATIC, WIDENED
from condconv.training.config import NO_VARIANT
from condconv.training.networks import plan_networks
from condconv.training.run_folder import RunFolder


def trained_networks(path: Path) -> list[str]:
    """The names of a run's networks that have weights: of "conditional", "static" and "widened"."""
    return [name for name in (CONDITIONAL, STATIC, WIDENED) if RunFolder(path).weights(name).exists()]


def load_trained(path: Path, network: str, source: Source) -> tuple[nn.Module, Source]:
    """Return a network of a run, and the data set as that network wants it (size, normalisation).

    Raises:
        CheckpointError: not a run folder, no such network in it, or weights that do not fit.
        ArgumentError: a data set of other classes.
    """
    folder = RunFolder(path)
    weights = folder.weights(network)
    if not weights.exists():
        raise CheckpointError(
            f"{path}: no {weights.name} in it; pass a run that is finished and has trained that network"
        )
    about = metadata(weights)
    classes = tuple(json.loads(about["classes"]))
    if source.classes != classes:
        raise ArgumentError(
            f"--data: {source.name} has {len(source.classes)} classes ({', '.join(source.classes[:3])}, …) and the "
            f"network of {path} was trained on {len(classes)} ({', '.join(classes[:3])}, …); pass data of those classes"
        )
    channels, *size = json.loads(about["input_shape"])
    height, width = size
    source = dataclasses.replace(
        source,
        image_size=(height, width),
        native=source.native and source.image_size == (height, width),
        mean=tuple(json.loads(about["mean"])),
        std=tuple(json.loads(about["std"])),
    )
    # The trained weights replace those it began with, which may be gone.
    config = dataclasses.replace(folder.read_config(), twin=network == WIDENED, upcycle_from=None)
    if network == STATIC:
        config = dataclasses.replace(config, variant=NO_VARIANT)
    specs = plan_networks(config, dataclasses.replace(source, channels=channels))
    model = next(spec for spec in specs if spec.name == network).build()
    load_strictly(model, read_safetensors(weights), str(weights))
    return model, source


def metadata(weights: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file; `CheckpointError` where it cannot be read."""
    if not weights.exists():
        raise FileNotFoundError(2, "no such file", str(weights))
    try:
        with safe_open(weights, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{weights}: truncated or damaged ({error}); train or copy it again") from error
