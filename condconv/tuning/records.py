"""Pins in words that JSON and checkpoints can hold."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from condconv.errors import CheckpointError
from condconv.execution import Question, machine_of, strategies
from condconv.layers import ConditionalLayer

Records = dict[str, list[dict[str, Any]]]
"""Layer name → its pins: the fields of the question, and the strategy."""


def pin_records(model: nn.Module) -> Records:
    """The pins of a model; layers without any are left out."""
    return {
        name: [{**_plain(asked), "strategy": strategy} for asked, strategy in layer.pins.items()]
        for name, layer in model.named_modules()
        if isinstance(layer, ConditionalLayer) and layer.pins
    }


def restore_pins(model: nn.Module, records: Mapping[str, Sequence[Mapping[str, Any]]], source: str) -> None:
    """Pin what `pin_records` wrote; pins of another machine are left out with a warning that names both.

    Raises:
        CheckpointError: the records are none, or of other layers.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ConditionalLayer)}
    try:
        pins = {
            name: {_question(record): str(record["strategy"]) for record in found} for name, found in records.items()
        }
        here = _machines()
        for name, found in pins.items():
            known = {asked: strategy for asked, strategy in found.items() if strategy in strategies}
            layers[name].pins = {asked: strategy for asked, strategy in known.items() if asked.machine in here}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: what was tuned cannot be read ({error!r}); write it again") from error
    elsewhere = {asked.machine for found in pins.values() for asked in found} - set(here)
    if elsewhere:
        warnings.warn(
            f"{source}: was tuned on {'; '.join(sorted(elsewhere))}, and this is {'; '.join(here)}: those pins are "
            "left out and the planner chooses; condconv.tune measures here",
            stacklevel=3,
        )


def _machines() -> list[str]:
    """What computes here: the processor and the GPUs."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    devices += [torch.device("mps")] if torch.backends.mps.is_available() else []
    return [machine_of(device) for device in (torch.device("cpu"), *devices)]


def _plain(asked: Question) -> dict[str, Any]:
    types = {name: value and str(value).removeprefix("torch.") for name, value in _types(asked).items()}
    return {**asked._asdict(), "input_shape": list(asked.input_shape), **types}


def _types(asked: Question) -> dict[str, torch.dtype | None]:
    return {"dtype": asked.dtype, "autocast": asked.autocast}


def _question(record: Mapping[str, Any]) -> Question:
    fields = {name: record[name] for name in Question._fields}
    fields |= {name: fields[name] and getattr(torch, fields[name]) for name in ("dtype", "autocast")}
    return Question(**{**fields, "input_shape": tuple(fields["input_shape"])})
