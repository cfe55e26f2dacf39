"""A run folder of `condconv train` named on the command line: its networks, and what was recorded about them."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from condconv.analysis import RecordedNetwork
from condconv.analysis.curves import MEASURED
from condconv.data import Source
from condconv.errors import ArgumentError, CheckpointError
from condconv.models.loading import load_strictly, read_safetensors
from condconv.training.networks import CONDITIONAL, plan_networks
from condconv.training.run_folder import RunFolder


def load_conditional(path: Path, source: Source) -> tuple[nn.Module, Source]:
    """Return the conditional network of a run, and the data set as that network wants it (size, normalisation).

    Raises:
        CheckpointError: not a run folder, no conditional network in it, or weights that do not fit.
        ArgumentError: a data set of other classes.
    """
    folder = RunFolder(path)
    weights = folder.weights(CONDITIONAL)
    if not weights.exists():
        raise CheckpointError(
            f"{path}: no {weights.name} in it; pass a run that is finished and has trained a conditional network "
            "(not --variant none)"
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
        source, image_size=(height, width), mean=tuple(json.loads(about["mean"])), std=tuple(json.loads(about["std"]))
    )
    config = dataclasses.replace(folder.read_config(), twin=False)
    model = plan_networks(config, dataclasses.replace(source, channels=channels))[0].build()
    load_strictly(model, read_safetensors(weights), str(weights))
    return model, source


def recorded_networks(path: Path) -> list[RecordedNetwork]:
    """Return what a finished run recorded about its networks.

    Raises:
        CheckpointError: not a finished run folder, or its files are damaged.
    """
    folder = RunFolder(path)
    try:
        with (path / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        epochs: dict[str, list[dict[str, float]]] = {}
        for row in rows:
            epochs.setdefault(row["network"], []).append({name: float(row[name] or "nan") for name in MEASURED})
        return [
            RecordedNetwork(path.name, network, int(metadata(folder.weights(network))["macs"]), recorded)
            for network, recorded in epochs.items()
        ]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not a finished run folder (no {Path(error.filename).name} in it)") from None
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: what the run recorded is damaged, or of another version ({error})") from error


def metadata(weights: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file; `CheckpointError` where it cannot be read."""
    if not weights.exists():
        raise FileNotFoundError(2, "no such file", str(weights))
    try:
        with safe_open(weights, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{weights}: truncated or damaged ({error}); train or copy it again") from error
