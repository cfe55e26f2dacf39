"""Networks on disk: a folder with ``config.json`` (how to build it), ``model.safetensors`` (weights) and a model card.

The configuration is the `create_model` call that made the network and, where a static network was converted after
that, which layers were and who routes them. It says nothing that has to be run: no pickles, no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

import condconv
from condconv import arguments
from condconv.conversion import convert, forget_originals
from condconv.conversion.apply import conditional_layers
from condconv.errors import CheckpointError
from condconv.files import Lock, whole_file, write_flushed
from condconv.models.build import Origin, origin_of, set_origin
from condconv.models.cards import model_card
from condconv.models.loading import load_strictly, read_safetensors
from condconv.models.records import conversion_record
from condconv.models.specs import SPECS
from condconv.models.zoo import create_model
from condconv.reading import parse_json, read_text
from condconv.tuning import pin_records, restore_pins

FORMAT_VERSION = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    input_size: tuple[int, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
    data: str = "",
    license: str = "",
) -> Path:
    """Write a network of `create_model` to a folder, from which `from_pretrained` makes it again.

    What `condconv.tune` pinned is written too, with the name of the machine.

    Args:
        model: a network of `create_model`, conditional or static, or one that was converted afterwards.
        folder: is made where it does not exist; files of an earlier save are replaced.
        input_size: (C, H, W) for the multiply-adds of the model card; None for the published size.
        metrics: what was measured, by name (``{"top-1 accuracy on CIFAR-10-JPEG": 0.91}``).
        data: what it was trained on.
        license: of the weights.

    Returns:
        The folder.

    Raises:
        CheckpointError: the network is not from `create_model`, has been changed since in a way that the configuration
            cannot say, or the folder cannot be written.
    """
    origin = origin_of(model)
    if origin is None:
        raise CheckpointError(
            f"save_pretrained: {type(model).__name__} was not made by create_model, so no configuration can say how to "
            "build it; save the weights alone with safetensors.torch.save_model and load them with "
            "condconv.models.load_weights"
        )
    config = _config(model, origin)
    _check_rebuilds(config, model)
    folder = arguments.path("save_pretrained", "folder", folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files = {
        WEIGHTS: save(state, metadata={"format": "pt"}),
        CARD: model_card(model, config, input_size, metrics or {}, data, license).encode(),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
    }
    _write(folder, files)
    return folder


def from_pretrained(folder: str | Path) -> nn.Module:
    """Make the network that `save_pretrained` wrote, in eval mode and on the CPU.

    What was tuned on another machine is left out, with a warning that names both.

    Args:
        folder: a folder, or a repository ``owner/name`` on the Hugging Face hub, which is downloaded.

    Raises:
        CheckpointError: a file is missing, truncated, a pickle or of a newer version of the format, or the weights do
            not fit: all tensors that do not are listed.
    """
    path = arguments.path("from_pretrained", "folder", folder)
    if not path.exists() and _HUB_ID.fullmatch(str(folder)):
        path = _download(str(folder))
    if not path.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; expected one with {CONFIG} and {WEIGHTS}, or a hub id owner/name"
        )
    config = read_config(path)
    model = _build(config, str(path / CONFIG))
    load_strictly(model, read_safetensors(path / WEIGHTS), str(path / WEIGHTS))
    restore_pins(model, config.get("tuned") or {}, str(path / CONFIG))
    return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check ``config.json``.

    Raises:
        CheckpointError: it is missing, no JSON, not ours, or of a newer version.
    """
    path = folder / CONFIG
    try:
        config = parse_json(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the folder was not written by save_pretrained") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); fetch or write it again") from error
    if not isinstance(config, dict) or config.get("format") != "condconv":
        raise CheckpointError(f"{path}: not a configuration of this package: its 'format' must be 'condconv'")
    version = config.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path}: format_version={version!r} must be a whole number from 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version={version} is newer than this condconv {condconv.__version__} reads "
            f"({FORMAT_VERSION}); it was written by {config.get('condconv_version')}: upgrade condconv"
        )
    if not isinstance(config.get("name"), str) or not isinstance(config.get("arguments"), dict):
        raise CheckpointError(f"{path}: 'name' must be a text and 'arguments' an object; fetch or write it again")
    if config["arguments"].get("pretrained"):
        raise CheckpointError(
            f"{path}: its arguments ask for a download, and a saved network brings its own weights; remove 'pretrained'"
        )
    return config


def _config(model: nn.Module, origin: Origin) -> dict[str, Any]:
    try:
        kept = json.loads(json.dumps(dict(origin.arguments)))
    except TypeError as error:
        raise CheckpointError(
            f"save_pretrained: an argument that {origin.name} was made with cannot be written as JSON ({error}); make "
            "the network with plain numbers and texts"
        ) from error
    converted = any(True for _ in conditional_layers(model)) and origin.name not in SPECS
    return {
        "format": "condconv",
        "format_version": FORMAT_VERSION,
        "condconv_version": condconv.__version__,
        "name": origin.name,
        "arguments": kept,
        "conversion": conversion_record(model) if converted else None,
        **({"tuned": tuned} if (tuned := pin_records(model)) else {}),
    }


def _build(config: Mapping[str, Any], source: str) -> nn.Module:
    """Make the network that a configuration describes, with fresh weights."""
    try:
        model = create_model(config["name"], **config["arguments"])
        record = config.get("conversion")
        if record is not None:
            model = _convert(model, record)
    except Exception as error:  # whatever timm and torch make of arguments that no save has written
        raise CheckpointError(f"{source}: describes no network that can be built: {error}") from error
    return model


def _convert(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
    origin = origin_of(model)
    names = set(record["layers"])
    share = {source or "network": _one_of(layers) for source, layers in record["shared"].items()}
    model = convert(
        model,
        record["variant"],
        targets=lambda name, _: name in names,
        num_experts=record["num_experts"],
        share=share or None,
        init="fresh",
        **record.get("options", {}),
    )
    if origin is not None:  # a model that is one layer is replaced as a whole
        set_origin(model, origin.name, origin.arguments)
    return forget_originals(model)


def _one_of(names: list[str]) -> str:
    return "^(?:" + "|".join(re.escape(name) for name in names) + ")$"


def _check_rebuilds(config: Mapping[str, Any], model: nn.Module) -> None:
    """Build the network from its configuration, without memory for weights, and compare names and shapes."""
    with torch.device("meta"):
        again = _build(config, "save_pretrained").state_dict()
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    other = {name: tuple(tensor.shape) for name, tensor in again.items()}
    different = sorted({name for name, _ in own.items() ^ other.items()})
    if different:
        raise CheckpointError(
            f"save_pretrained: the network is no longer what create_model('{config['name']}') made: "
            f"{len(different)} tensors differ, among them {', '.join(different[:5])}; save the weights alone with "
            "safetensors.torch.save_model"
        )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files whole, the configuration last; while it is not there, the folder is no saved network.

    So weights are never beside the configuration of others, whenever a kill comes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder / ".lock", str(folder)), ExitStack() as stack:
            # All of them under their temporary names first: a full disk leaves an earlier save as it was.
            for name in reversed(list(files)):
                write_flushed(stack.enter_context(whole_file(folder / name)), files[name])
            (folder / CONFIG).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error


def _download(repository: str) -> Path:
    from huggingface_hub import hf_hub_download  # comes with timm; not needed for folders
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        paths = [Path(hf_hub_download(repository, name)) for name in (CONFIG, WEIGHTS)]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{repository}: no such folder here, and the hub does not have it ({error})") from error
    return paths[0].parent
