"""Opening a network, however it is named: a run folder, a folder of `save_pretrained`, published weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from condconv import arguments
from condconv.errors import CheckpointError, UnknownNameError, argument_error
from condconv.models import create_model
from condconv.models.saving import is_hub_id, load_saved
from condconv.runs.folder import is_run
from condconv.runs.trained import load_run

_WHERE = "from_pretrained"


def from_pretrained(name: str | Path, *, network: str | None = None, model: nn.Module | None = None) -> nn.Module:
    """Make a network with its trained weights, in eval mode and on the CPU.

    What a network of a run was trained on (classes, size, mean and standard deviation) is in its ``pretrained_cfg``,
    under timm's names, and travels with `condconv.save_pretrained`. What was tuned on another machine is left out, with
    a warning that names both.

    Args:
        name: a run folder of ``condconv train``, a folder of `condconv.save_pretrained`, a repository ``owner/name`` on
            the Hugging Face hub, or the name of a network with published weights; the last two are downloaded.
        network: of a run: "conditional", "static" or "widened", or one of them with "-best" for its best epoch; None
            for the first that the run has.
        model: of a folder whose network was not made by `condconv.create_model`: that network as it was before its
            conversion. It is converted in place.

    Raises:
        CheckpointError: nothing is there, a file is missing, truncated, a pickle or of a newer version of the format,
            or the weights do not fit: all tensors that do not are listed.
        UnknownNameError: no folder and no network of that name.
        ArgumentError: `network` or `model` is for something else; or no weights of that network are published.
    """
    path = arguments.path(_WHERE, "name", name).expanduser()
    run = is_run(path)
    if network is not None and not run:
        raise argument_error(_WHERE, "network", network, f"is of a run folder, which {name} is not", "leave it out")
    saved = not run and (path.is_dir() or is_hub_id(str(name)))
    if model is not None:
        arguments.a_module(_WHERE, "model", model)
        if not saved:
            rule = f"is for a folder of save_pretrained, which {name} is not"
            raise argument_error(_WHERE, "model", type(model).__name__, rule, "leave it out")
    if run:
        return load_run(path, network).eval()
    if saved:
        return load_saved(path, model).eval()
    if len(path.parts) > 1 or path.exists():
        kinds = "a run folder, a folder of save_pretrained, a hub id owner/name or a network's name"
        raise CheckpointError(f"{name}: no such folder; pass {kinds}")
    try:
        return create_model(str(name), pretrained=True).eval()
    except UnknownNameError as error:
        raise UnknownNameError(f"{name}: no such folder; and {error}") from None
