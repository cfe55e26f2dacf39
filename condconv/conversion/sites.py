"""The layers of a network as a conversion sees them: by depth, with their kind and with what stands in the way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from condconv.conversion.blocks import Block, find_blocks, has_weights, squeeze_excite_layers
from condconv.conversion.same_padding import pads_same
from condconv.counting.trace import Inputs, Trace, trace
from condconv.errors import ConversionError
from condconv.layers import ConditionalLayer
from condconv.routers import Router
from condconv.variants import Variant

KINDS = ("pointwise", "depthwise", "dense", "transposed", "linear")

_LAYER_NAME = re.compile(r"(Lazy|Cond)?(Conv(Transpose)?[123]d|Linear)")
_FORWARDS = {
    vars(kind)["forward"]
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
}
_SAME_ARITHMETIC = frozenset({("timm.layers.linear", "Linear")})
"""Subclasses whose own forward computes what the class in torch.nn does (module, name)."""
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that compute with their children's weights instead of calling the children."""


@dataclass(frozen=True)
class Site:
    """A layer with weights, and its place in the network."""

    name: str
    module: nn.Module
    kind: str
    """One of `KINDS`, or "other" for what only looks like a layer (quantised, scripted)."""
    block: str | None
    squeeze_excite: bool
    classifier: bool
    obstacle: str | None
    """Why it cannot be converted, or None."""


@dataclass(frozen=True)
class Survey:
    """All layers of a network, shallow ones first, and its blocks."""

    model: nn.Module
    sites: dict[str, Site]
    blocks: dict[str, Block]
    trace: Trace | None

    @property
    def convolutions(self) -> list[Site]:
        """The convolutions that count for depth: squeeze-excite layers and classifiers left out."""
        return [
            site
            for site in self.sites.values()
            if site.kind not in ("linear", "other") and not site.squeeze_excite and not site.classifier
        ]


def survey(model: nn.Module, variant: Variant, inputs: Inputs | None) -> Survey:
    """Find the layers and blocks of `model`; with `inputs`, from one forward pass, else in the order of its modules.

    Raises:
        ConversionError: the model is compiled or wrapped for parallel training.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch._dynamo.OptimizedModule)
    if isinstance(model, wrappers):
        rule = "would not see new layers; convert the module inside first"
        raise ConversionError(f"plan: model is a {type(model).__name__}, which {rule}")
    modules = dict(model.named_modules())
    routers = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Router))
    found = [
        name
        for name, module in modules.items()
        if (has_weights(module) or _looks_like_layer(module)) and not name.startswith(routers)
    ]
    lazy = any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters())
    watched = None if inputs is None or lazy else trace(model, inputs)
    called = None
    if watched is not None:
        called = {call.name for call in watched.calls}
        order = {name: i for i, name in enumerate(dict.fromkeys(call.name for call in watched.calls))}
        found.sort(key=lambda name: order.get(name, len(order)))
    blocks = {block.name: block for block in find_blocks(model, found, called)}
    block_of = {layer: block.name for block in blocks.values() for layer in block.layers}
    inside_squeeze_excite = squeeze_excite_layers(model)
    classifiers = _classifiers(model)
    ties = _ties(modules)
    sites = {
        name: Site(
            name,
            modules[name],
            _kind(modules[name]),
            block_of.get(name),
            name in inside_squeeze_excite,
            id(modules[name]) in classifiers,
            _own_obstacle(modules[name], variant) or _obstacle_around(name, modules, ties, watched),
        )
        for name in found
    }
    return Survey(model, sites, blocks, watched)


def _kind(module: nn.Module) -> str:
    if isinstance(module, ConditionalLayer):
        return "linear" if issubclass(module.static_type, nn.Linear) else "dense"
    if isinstance(module, nn.Linear):
        return "linear"
    if not isinstance(module, _ConvNd):
        return "other"
    if isinstance(module, _ConvTransposeNd):
        return "transposed"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise"
    return "pointwise" if all(k == 1 for k in module.kernel_size) else "dense"


def _looks_like_layer(module: nn.Module) -> bool:
    names = [getattr(module, "original_name", None), *(kind.__name__ for kind in type(module).__mro__)]
    return any(name and _LAYER_NAME.fullmatch(name) for name in names)


def _own_obstacle(module: nn.Module, variant: Variant) -> str | None:
    """What in the layer itself stands in the way of converting it."""
    if isinstance(module, ConditionalLayer):
        return "already conditional"
    reason = layer_obstacle(module)
    if reason is None and variant.layer_for(module) is None:
        return f"{variant.name} has no conditional form of {type(module).__name__}"
    return reason


def layer_obstacle(module: nn.Module) -> str | None:
    """Why a static layer may not be taken for its weight, its bias and its arguments alone, or None."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript: convert the Python module and script that"
    if kind.__module__ == "timm.layers.cond_conv2d":
        return "timm's own CondConv layer: use condconv.models.from_timm"
    if not isinstance(module, (_ConvNd, nn.Linear)):
        return f"{kind.__module__}.{kind.__name__} is no torch.nn layer (quantised?)"
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        return "lazy: run the network once to initialise it"
    if parametrize.is_parametrized(module):
        return "parametrised: torch.nn.utils.parametrize.remove_parametrizations first"
    if "forward" in vars(module) or not _keeps_arithmetic(module):
        return f"{kind.__name__} computes something else than its torch.nn class (own forward)"
    if "bias" not in module._parameters or module._parameters.get("weight") is None:
        return "its weight or bias is computed by a hook (weight_norm, spectral_norm, pruning): remove that first"
    if not module.weight.is_floating_point():
        return f"weights of dtype {module.weight.dtype}"
    if module.weight.numel() == 0:
        return "no weights (zero channels)"
    own = module._parameters.keys() - {"weight", "bias"}
    if own or any(True for _ in module.children()) or any(True for _ in module.buffers()):
        return f"{kind.__name__} holds modules, parameters or buffers of its own"
    return None


def _keeps_arithmetic(module: nn.Module) -> bool:
    kind = type(module)
    if (kind.__module__, kind.__name__) in _SAME_ARITHMETIC or pads_same(module):
        return True
    convolves = getattr(kind, "_conv_forward", None)
    plain = convolves is None or convolves in {k._conv_forward for k in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
    return kind.forward in _FORWARDS and (plain or isinstance(module, _ConvTransposeNd))


def _obstacle_around(
    name: str, modules: Mapping[str, nn.Module], ties: Mapping[str, str], watched: Trace | None
) -> str | None:
    """What in the rest of the network stands in the way of converting a layer."""
    if name in ties:
        return f"shares its parameters with {ties[name]}"
    parent = modules[name.rpartition(".")[0]] if name else None
    if isinstance(parent, _READERS):
        return f"its weights are read by {type(parent).__name__}, which does not call it"
    if watched is None:
        return None
    if name in watched.foreign_reads:
        return f"its weights are read by {watched.foreign_reads[name] or 'the network'}, outside of its forward"
    calls = watched.of(name)
    if not calls:
        return "not called in a forward pass in eval mode"
    if any(call.arguments != 1 for call in calls):
        return "called with more than its input (output_size?)"
    return None


def _ties(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layer → another module that holds one of its parameters too."""
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    shared = [names for names in owners.values() if len(set(names)) > 1]
    return {name: next(o for o in names if o != name) or "the network" for names in shared for name in names}


def _classifiers(model: nn.Module) -> set[int]:
    """Ids of the layers that timm's networks call their classifier; some are convolutions."""
    get = getattr(model, "get_classifier", None)
    found = get() if callable(get) else None
    heads = found if isinstance(found, (tuple, list)) else [found]
    return {id(head) for head in heads if isinstance(head, nn.Module)}


def name_patterns(names: list[str], limit: int = 12) -> str:
    """Return layer names with their numbers replaced by *, most frequent first, each with its count."""
    patterns = Counter(re.sub(r"\d+", "*", name) for name in names)
    shown = [f"{pattern or '(the model)'} ({count})" for pattern, count in patterns.most_common(limit)]
    return ", ".join(shown) + (", …" if len(patterns) > limit else "")
