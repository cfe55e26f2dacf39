"""Networks on disk: a folder with ``config.json`` (how to build it), ``model.safetensors`` (weights) and a model card.

The configuration is the `create_model` call that made the network, where a static network was converted after that
which layers were and who routes them, and what it was trained on where that is known. Of a network that was made
elsewhere and converted here it has the conversion alone; of an inference form, how each layer is stored. It says
nothing that has to be run: no pickles, no code.
"""

from __future__ import annotations

import copy
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
from condconv.banks import Packing
from condconv.conversion import revert
from condconv.conversion.apply import conditional_blocks, conditional_layers, original_of, refuse_tiles
from condconv.errors import CheckpointError
from condconv.files import Lock, whole_file, write_flushed
from condconv.inference import InferenceForm
from condconv.inference.form import inference_form
from condconv.models.build import Origin, origin_of, set_origin
from condconv.models.cards import model_card
from condconv.models.loading import load_strictly, read_safetensors
from condconv.models.records import INSTEAD, conversion_records, convert_again
from condconv.models.specs import SPECS
from condconv.models.trained_on import note_images, noted_images
from condconv.models.zoo import create_model
from condconv.reading import parse_json, read_text
from condconv.tuning import pin_records, restore_pins

FORMAT_VERSION = 3
"""3 has inference forms; 2 routers that are no variant's default, several conversions, networks from elsewhere; what
needs none of these is 1."""
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
    """Write a network to a folder, from which `condconv.from_pretrained` makes it again.

    What `condconv.tune` pinned is written too, with the name of the machine; and what the network was trained on, where
    it comes from a run.

    Args:
        model: a network of `create_model` or of a run, converted afterwards or not; or any other network that was
            converted here, whose static form `from_pretrained` is then given. Or the inference form of one of these:
            its file has the experts as they are packed.
        folder: is made where it does not exist; files of an earlier save are replaced.
        input_size: (C, H, W) for the multiply-adds of the model card; None for the published size.
        metrics: what was measured, by name (``{"top-1 accuracy on CIFAR-10-JPEG": 0.91}``).
        data: what it was trained on.
        license: of the weights.

    Returns:
        The folder.

    Raises:
        CheckpointError: the network is neither from `create_model` nor converted here, has been changed since in a way
            that the configuration cannot say, or the folder cannot be written.
        ConversionError: the network routes by tile.
    """
    arguments.a_module("save_pretrained", "model", model)
    refuse_tiles(model, "save_pretrained")
    config = _config(model, origin_of(model) or _elsewhere(model))
    _check_rebuilds(config, model)
    folder = arguments.path("save_pretrained", "folder", folder)
    # Copies: safetensors refuses tensors that share memory, as those of tied layers do.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    files = {
        WEIGHTS: save(state, metadata={"format": "pt"}),
        CARD: model_card(model, config, input_size, metrics or {}, data, license).encode(),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
    }
    _write(folder, files)
    return folder


def is_hub_id(name: str) -> bool:
    """Whether it can be a repository ``owner/name`` on the Hugging Face hub."""
    return _HUB_ID.fullmatch(name) is not None


def load_saved(folder: Path, static: nn.Module | None = None) -> nn.Module:
    """Make the network that `save_pretrained` wrote, on the CPU. See `condconv.from_pretrained`."""
    path = folder if folder.exists() or not is_hub_id(str(folder)) else _download(str(folder))
    if not path.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; expected one with {CONFIG} and {WEIGHTS}, or a hub id owner/name"
        )
    config = read_config(path)
    source = str(path / CONFIG)
    if config["name"] is None and static is None:
        raise CheckpointError(
            f"{source}: a converted {config.get('network')}, which create_model does not make; pass one as it was "
            "before its conversion: condconv.from_pretrained(folder, model=…)"
        )
    if config["name"] is not None and static is not None:
        raise CheckpointError(f"{source}: says itself how {config['name']} is built; leave model out")
    model = _build(config, source, static)
    load_strictly(model, read_safetensors(path / WEIGHTS), str(path / WEIGHTS))
    restore_pins(model, config.get("tuned") or {}, source)
    return model


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
    named = isinstance(config.get("name"), str) or (config.get("name", "") is None and config.get("conversion"))
    if not named or not isinstance(config.get("arguments"), dict):
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
    records = [] if origin.name in SPECS else conversion_records(model)
    special = any({"routers", "options", "together", "blocks"} & record.keys() for record in records)
    simple = origin.name is not None and len(records) <= 1 and not special
    form = form_of(model)
    return {
        "format": "condconv",
        "format_version": 3 if form else 1 if simple else 2,
        "condconv_version": condconv.__version__,
        "name": origin.name,
        **({"network": f"{type(model).__module__}.{type(model).__qualname__}"} if origin.name is None else {}),
        "arguments": kept,
        "conversion": records or None if not simple else records[0] if records else None,
        **({"inference_form": _described(form)} if form else {}),
        **({"images": images} if (images := noted_images(model)) else {}),
        **({"tuned": tuned} if (tuned := pin_records(model)) else {}),
    }


def _elsewhere(model: nn.Module) -> Origin:
    """Of a network that was made elsewhere and converted here."""
    made = [one for _, one in (*conditional_layers(model), *conditional_blocks(model))]
    if made and (form_of(model) or all(original_of(one) is not None for one in made)):
        return Origin(None)
    raise CheckpointError(
        f"save_pretrained: {type(model).__name__} was not made by create_model, and not converted by condconv.convert, "
        f"so no configuration can say how to build it; {INSTEAD}"
    )


def _build(config: Mapping[str, Any], source: str, static: nn.Module | None = None) -> nn.Module:
    """Make the network that a configuration describes, with fresh weights; `static` where it does not say how."""
    try:
        model = create_model(config["name"], **config["arguments"]) if static is None else static
        origin = origin_of(model) or Origin(None)
        records = config.get("conversion") or []
        model = convert_again(model, [records] if isinstance(records, dict) else records)
        if config.get("inference_form") is not None:
            model = _in_form(model, config["inference_form"])
        set_origin(model, origin.name, origin.arguments)  # a model that is one layer was replaced as a whole
        if config.get("images") is not None:
            note_images(model, config["images"])
    except Exception as error:  # whatever timm and torch make of arguments that no save has written
        raise CheckpointError(f"{source}: describes no network that can be built: {error}") from error
    return model


def form_of(model: nn.Module) -> InferenceForm | None:
    """What `optimize_for_inference` made of a network; None for any other."""
    return getattr(model, "inference_form", None)


def _described(form: InferenceForm) -> dict[str, Any]:
    """An inference form in words that JSON can hold."""
    layers = {name: stored._asdict() for name, stored in form.layers.items()}
    return {"rest": form.rest, "skip_below": form.skip_below, "static": list(form.static), "layers": layers}


def _in_form(model: nn.Module, about: Mapping[str, Any]) -> nn.Module:
    """The inference form that `_described` describes, with the network's own weights."""
    layers, threshold = about["layers"], about["skip_below"]

    def packing_of(name: str) -> Packing:
        return Packing(layers[name]["storage"], threshold, layers[name]["kernels"])

    conditional = {name for name, _ in conditional_layers(model)}
    made: nn.Module = inference_form(
        model, packing_of, about["rest"], {name: None for name in about["static"] if name in conditional}
    )
    return made


def _static_form(model: nn.Module) -> nn.Module | None:
    """A network from elsewhere as it was before its conversion; None where that is not known any more."""
    if any(original_of(layer) is None for _, layer in conditional_layers(model)):
        return None
    return revert(copy.deepcopy(model), discard_training=True).to("meta")


def _check_rebuilds(config: Mapping[str, Any], model: nn.Module) -> None:
    """Build the network from its configuration, without memory for weights, and compare names and shapes."""
    static = _static_form(model) if config["name"] is None else None
    if config["name"] is None and static is None:
        return  # it was built from such a configuration
    with torch.device("meta"):
        again = _build(config, "save_pretrained", static).state_dict()
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    other = {name: tuple(tensor.shape) for name, tensor in again.items()}
    different = sorted({name for name, _ in own.items() ^ other.items()})
    if different:
        maker = "condconv.convert" if config["name"] is None else f"create_model('{config['name']}')"
        raise CheckpointError(
            f"save_pretrained: the network is no longer what {maker} made: {len(different)} tensors differ, among them "
            f"{', '.join(different[:5])}; {INSTEAD}"
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
