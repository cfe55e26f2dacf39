"""Putting tensors into a network: all that is wrong is listed before anything is loaded; pickles are never opened."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from condconv.conversion.apply import conditional_layers
from condconv.conversion.upcycle import upcycle_bank
from condconv.errors import CheckpointError
from condconv.routers import Router, RoutingScope

_PICKLE_MAGIC = b"\x80"


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        CheckpointError: the file is missing, a pickle (refused: unpickling runs code), truncated, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights in safetensors format")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: {_what_it_is(path)} ({error})") from error


def _what_it_is(path: Path) -> str:
    """What a file is that cannot be read as safetensors, and the remedy.

    Asked only then: a safetensors file may begin with the byte that a pickle begins with.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if start[:1] == _PICKLE_MAGIC or zipfile.is_zipfile(path):
        return (
            "a pickle or torch.save file, which is refused because opening one can run code; where you trust it, "
            "convert it once with safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)"
        )
    if len(start) == 8 and 2 <= int.from_bytes(start, "little") < 100_000_000:
        return f"truncated or damaged safetensors file of {path.stat().st_size} bytes; fetch or write it again"
    return "not a safetensors file; fetch or write it again"


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model`` if it fits exactly; values are cast to the model's types.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape. All are listed with their shapes and the
            model is as it was.
    """
    own = model.state_dict()
    hint = ""
    if is_static_checkpoint_of(model, state):
        hint = (
            ". These are the weights of the static network: "
            "condconv.models.load_weights(model, weights, upcycle=True) starts the experts from them"
        )
    check_fit(own, state, source, type(model).__name__, hint)
    model.load_state_dict(own | dict(state))


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, target: str, hint: str = "") -> None:
    """Compare names and shapes of what a model has and what is given.

    Raises:
        CheckpointError: lists everything that is missing, left over or of another shape.
    """
    missing = [f"missing: {name} {tuple(own[name].shape)}" for name in own if name not in state and not _optional(name)]
    extra = [f"extra: {name} {tuple(state[name].shape)}" for name in state if name not in own]
    kinds = [
        f"wrong type: {name} {state[name].dtype}, the model has {own[name].dtype}"
        for name in own
        if name in state and not _castable(state[name].dtype, own[name].dtype)
    ]
    misshaped = [
        f"wrong shape: {name} {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in state
        if name in own and state[name].shape != own[name].shape
    ]
    if missing or extra or misshaped or kinds:
        listed = "\n  ".join(missing + extra + misshaped + kinds)
        raise CheckpointError(
            f"{source}: does not fit {target}: {len(missing)} tensors missing, {len(extra)} left over, "
            f"{len(misshaped)} of the wrong shape, {len(kinds)} of the wrong type; nothing was loaded{hint}\n  {listed}"
        )


def load_weights(model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, upcycle: bool = False) -> nn.Module:
    """Load weights into ``model`` in place and return it.

    Args:
        model: any network.
        weights: a safetensors file, or a state dict.
        upcycle: ``weights`` are those of the static network that ``model`` was converted from. The conditional network
            then computes what the static one did: the experts are spread around the static kernels, and the routers
            start with constant coefficients.

    Raises:
        CheckpointError: the file cannot be read, or tensors are missing, left over or of another shape: all are listed,
            and nothing is loaded.
        ConversionError: a router's gate cannot be upcycled (top-k).
    """
    source = "the given state dict" if isinstance(weights, Mapping) else str(weights)
    state = weights if isinstance(weights, Mapping) else read_safetensors(weights)
    if upcycle:
        _load_static(model, state, source)
    else:
        load_strictly(model, state, source)
    return model


def _load_static(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a static network's weights: plain layers as they are, conditional ones upcycled."""
    layers = dict(conditional_layers(model))
    if not layers:
        raise CheckpointError(f"{source}: upcycle=True, but the model has no conditional layer; leave upcycle out")
    own = model.state_dict()
    routers = routers_of(model)
    of_routers = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Router))
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith(of_routers) and ".bank." not in name}
    for name, layer in layers.items():
        dtype = layer.bank.like.dtype
        wanted[f"{name}.weight"] = torch.empty(layer.site.kernel_shape, dtype=dtype, device="meta")
        if layer.site.bias:
            wanted[f"{name}.bias"] = torch.empty(layer.site.out_channels, dtype=dtype, device="meta")
    check_fit(wanted, state, source, f"the static {type(model).__name__}")
    model.load_state_dict(own | {name: tensor for name, tensor in state.items() if name in own})
    for name, layer in layers.items():
        upcycle_bank(layer.bank, routers[name], state[f"{name}.weight"], state.get(f"{name}.bias"), name)


def routers_of(model: nn.Module) -> dict[str, Router]:
    """The router of each conditional layer, its own or the shared one, by the layer's name."""
    shared: dict[RoutingScope, Router] = {}
    for module in model.modules():
        scope = getattr(module, "routed_scope", None)
        if isinstance(scope, RoutingScope):
            shared[scope] = getattr(module, "router")  # noqa: B009  (nn.Module types children as tensors too)
    found = {}
    for name, layer in conditional_layers(model):
        router = layer.router if layer.scope is None else shared[layer.scope]
        if router is not None:
            found[name] = router
    return found


def is_static_checkpoint_of(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` holds static kernels exactly where ``model`` has experts."""
    layers = dict(conditional_layers(model))
    return bool(layers) and all(
        f"{name}.weight" in state and tuple(state[f"{name}.weight"].shape) == layer.site.kernel_shape
        for name, layer in layers.items()
    )


def _castable(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether values stay what they are: no complex numbers, bools or f64 into f32, and no integers for numbers."""
    if given == wanted:
        return True
    if given.is_floating_point and wanted.is_floating_point:
        return given != torch.float64
    whole = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return given in whole and wanted in whole


def _optional(name: str) -> bool:
    # TensorFlow and old timm files do not count the batches of a batch norm.
    return name.endswith("num_batches_tracked")
