"""The weights that the networks of a run begin with: published ones, or those of a network that was trained before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from condconv.conversion.apply import conditional_layers
from condconv.data import Source
from condconv.errors import CheckpointError
from condconv.models import create_model, load_weights
from condconv.models.build import published_name
from condconv.models.loading import read_safetensors
from condconv.models.saving import WEIGHTS, read_config
from condconv.models.specs import SPECS
from condconv.runs.config import PUBLISHED, TrainConfig
from condconv.runs.folder import RunFolder, is_run


@dataclass(frozen=True)
class Start:
    """Trained weights: tensors by name, whence, of how many classes, and by which mean and standard deviation.

    What is not known is None.
    """

    state: Mapping[str, Tensor]
    origin: str
    classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def find_start(config: TrainConfig, network: str, arguments: Mapping[str, Any]) -> Start | None:
    """The weights that a network of a run begins with; None where a run has none for it.

    Args:
        config: its `pretrained`, which is set, says which.
        network: "conditional" or "static".
        arguments: of `create_model`, for published weights: new classifiers and first layers are made there.

    Raises:
        CheckpointError: no such weights, or damaged ones.
        ArgumentError: none are published for the model, or not for what the arguments change.
    """
    assert config.pretrained is not None
    if config.pretrained == PUBLISHED:
        return _published(config.model, network, arguments)
    path = Path(config.pretrained).expanduser()
    if is_run(path):
        return _of_run(path, network)
    if path.is_dir():
        return _of_saved(path)
    return _of_file(path)


def begin_with(model: nn.Module, start: Start, static: Callable[[], nn.Module]) -> None:
    """Put the weights into a network in place.

    Static weights are upcycled into conditional layers. A classifier for other classes stays as it is drawn, in a
    conditional network as the static twin draws it.

    Args:
        model: with fresh weights.
        start: what it begins with.
        static: makes the static twin, with fresh weights.

    Raises:
        CheckpointError: tensors of something else than the classifier do not fit: all are listed.
    """
    upcycled = any(f"{name}.weight" in start.state for name, _ in conditional_layers(model))
    state = _with_classifier_of(static() if upcycled else model, start.state)
    load_weights(model, state, upcycle=upcycled)


def as_the_start(source: Source, start: Start | None) -> Source:
    """A data set normalised as the weights want it."""
    if start is None or start.mean is None or start.std is None or len(start.mean) != source.channels:
        return source
    return replace(source, mean=start.mean, std=start.std)


def about_start(start: Start | None, source: Source) -> Iterator[str]:
    """One line: where the weights are from, and whether the classifier is new."""
    if start is not None:
        same = start.classes is None or start.classes == len(source.classes)
        new = "" if same else f"; new classifier for {len(source.classes)} classes in place of that for {start.classes}"
        yield f"notice: begins with {start.origin}{new}"


def _published(model: str, network: str, arguments: Mapping[str, Any]) -> Start:
    own = network != "static" and model in SPECS and published_name(model) is not None
    name = SPECS[model].backbone if model in SPECS and not own else model
    made = create_model(name, pretrained=True, **arguments)
    about = getattr(made, "pretrained_cfg", None) or {}
    mean, std = (tuple(about[key]) if about.get(key) else None for key in ("mean", "std"))
    return Start(made.state_dict(), f"the published weights of {name}", about.get("num_classes"), mean, std)


def _of_run(path: Path, network: str) -> Start | None:
    """The weights of the network of that name; upcycled static ones where the run has no conditional network."""
    folder = RunFolder(path)
    file = next((folder.weights(name) for name in (network, "static") if folder.weights(name).exists()), None)
    if file is None and folder.weights("conditional").exists():
        return None  # a static twin beside a conditional network that goes on
    if file is None:
        raise CheckpointError(f"--pretrained {path}: no trained weights in it; finish it with --resume {path}")
    return _of_file(file)


def _of_saved(path: Path) -> Start:
    config = read_config(path)
    images = config.get("images") or {}
    mean, std = (tuple(images[key]) if key in images else None for key in ("mean", "std"))
    classes = len(images["label_names"]) if images else (config.get("arguments") or {}).get("num_classes")
    return Start(read_safetensors(path / WEIGHTS), f"the weights of {path}", classes, mean, std)


def _of_file(path: Path) -> Start:
    if not path.exists():
        kinds = "a run folder, a folder of save_pretrained or a safetensors file"
        raise CheckpointError(f"--pretrained {path}: no such file or folder; pass {kinds}")
    state = read_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = {name: json.loads(text) for name, text in (file.metadata() or {}).items() if name in _NOTED}
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error})") from error
    classes = len(about["classes"]) if "classes" in about else None
    mean, std = (tuple(about[key]) if key in about else None for key in ("mean", "std"))
    return Start(state, f"the weights of {path}", classes, mean, std)


_NOTED = ("classes", "mean", "std")


def _with_classifier_of(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state, with the classifier of a network where the state's is for other classes."""
    get: Any = getattr(model, "get_classifier", None)
    classifier = get() if get is not None else None
    prefix = next((f"{name}." for name, module in model.named_modules() if module is classifier), None)
    if prefix is None:
        return state
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    if all(name not in state or state[name].shape == tensor.shape for name, tensor in own.items()):
        return state
    return {**{name: tensor for name, tensor in state.items() if not name.startswith(prefix)}, **own}
