"""Which converted layers share a router, and from which module's input it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from condconv.coefficients import Slices
from condconv.conversion.sites import Site, Survey
from condconv.conversion.together import by_pattern
from condconv.counting.trace import Call
from condconv.errors import argument_error
from condconv.variants import Share


@dataclass(frozen=True)
class Group:
    """Layers with one router."""

    source: str
    """Name of the module whose input feeds the router."""
    layers: tuple[str, ...]
    in_channels: int
    rank: int
    channels_last: bool
    spans_blocks: bool
    """The coefficients are lent beyond the source's own call."""


@dataclass(frozen=True)
class Sharing:
    """The groups; every other layer routes for itself, for a reason if sharing was asked for."""

    groups: tuple[Group, ...]
    own: dict[str, str]


def share_routing(survey: Survey, names: Sequence[str], share: Share, slices: Mapping[str, Slices]) -> Sharing:
    """Distribute the layers to convert (`names`, by depth) over routers; only those with the same slices share one.

    Raises:
        ArgumentError: `share` is none of "block", "network", None, a positive number or {name: regex}; a regex matches
            no layer, or two match the same.
    """
    if share is None:
        return Sharing((), dict.fromkeys(names, ""))
    wanted = _wanted(survey, names, share)
    groups, own = [], {name: "in no block" for name in names}
    for source, layers in wanted:
        group, alone = _group(survey, source, layers, slices)
        for name in layers:
            own.pop(name, None)
        own.update(alone)
        if group is not None:
            groups.append(group)
    return Sharing(tuple(groups), {name: own[name] for name in names if name in own})


def _wanted(survey: Survey, names: Sequence[str], share: Share) -> list[tuple[str, list[str]]]:
    """Return (source, layers) for every router to be shared."""
    by_block: dict[str, list[str]] = {}
    for name in names:
        if (block := survey.sites[name].block) is not None:
            by_block.setdefault(block, []).append(name)
    if share == "block":
        return list(by_block.items())
    if share == "network":
        return [(_source_of(survey, list(names)), list(names))]
    if isinstance(share, int) and not isinstance(share, bool) and share > 0:
        blocks = list(by_block)
        chunks = [blocks[i : i + share] for i in range(0, len(blocks), share)]
        return [(chunk[0], [name for block in chunk for name in by_block[block]]) for chunk in chunks]
    if isinstance(share, Mapping):
        return _by_pattern(survey, names, share)
    rule, remedy = "is not a way to share", 'use "block", "network", None, a number of blocks or {name: regex}'
    raise argument_error("plan", "share", share, rule, remedy)


def _by_pattern(survey: Survey, names: Sequence[str], share: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    taken = by_pattern(names, share, "share")
    groups = [[name for name in names if taken.get(name) == key] for key in share]
    return [(_source_of(survey, group), group) for group in groups]


def _source_of(survey: Survey, layers: Sequence[str]) -> str:
    """The block of the first layer; outside of blocks, the innermost module around all layers that is called."""
    block = survey.sites[layers[0]].block
    if block is not None:
        return block
    called = None if survey.trace is None else {call.name for call in survey.trace.calls}
    around = layers[0].split(".")[:-1]
    for end in range(len(around), 0, -1):
        name = ".".join(around[:end])
        inside = all(layer.startswith(f"{name}.") for layer in layers)
        container = isinstance(survey.model.get_submodule(name), (nn.ModuleList, nn.ModuleDict))
        if inside and not container and (called is None or name in called):
            return name
    return ""


def _group(
    survey: Survey, source: str, layers: Sequence[str], slices: Mapping[str, Slices]
) -> tuple[Group | None, dict[str, str]]:
    """Return the group of the layers that can share, and the reasons of those that cannot."""
    module = survey.model.get_submodule(source)
    if module in [survey.sites[name].module for name in layers]:
        return None, dict.fromkeys(layers, "is itself the module to share over")
    if getattr(module, "router", None) is not None:
        return None, dict.fromkeys(layers, f"{source or 'the network'} has a `router` already")
    iterates = isinstance(module, (nn.ModuleList, nn.ModuleDict))
    if iterates or (isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward):
        return None, dict.fromkeys(layers, f"{source} may run over all its children, a router among them")
    if "forward" in vars(module):
        return None, dict.fromkeys(layers, f"the forward of {source or 'the network'} is patched")
    shape = _source_shape(survey, source, survey.sites[layers[0]])
    if isinstance(shape, str):
        return None, dict.fromkeys(layers, shape)
    inside = all(_is_inside(name, source) for name in layers)
    alone = {name: why for name in layers if (why := _why_alone(survey, name, layers[0], source, not inside))}
    alone |= {
        name: f"needs {slices[name]} coefficients, the first layer {slices[layers[0]]}"
        for name in layers
        if slices[name] != slices[layers[0]]
    }
    together = tuple(name for name in layers if name not in alone)
    group = Group(source, together, *shape, spans_blocks=not inside) if together else None
    return group, alone


def _is_inside(name: str, source: str) -> bool:
    return not source or name.startswith(f"{source}.")


def _source_shape(survey: Survey, source: str, first: Site) -> tuple[int, int, bool] | str:
    """Return (channels, spatial rank, channels last) of the source's input, or why it cannot feed a router."""
    block = survey.blocks.get(source)
    # Outside of blocks, the first layer inside of the source meets its input, whether it is converted or not.
    inside = next((site for name, site in survey.sites.items() if _is_inside(name, source)), first)
    member = survey.sites[block.layers[0]] if block is not None else inside
    layer = cast(Any, member.module)
    linear = member.kind == "linear"
    channels = layer.in_features if linear else layer.in_channels
    if survey.trace is None:
        return channels, 1 if linear else len(layer.kernel_size), linear
    calls = survey.trace.of(source)
    x = calls[0].input if calls else None
    if x is None or x.dim() < 2 or not all(call.starts_with_tensor for call in calls):
        return f"{source or 'the network'} gets no tensor with channels"
    last = x.dim() > 2 and (linear or x.shape[1] % channels != 0) and x.shape[-1] == channels
    own_input = survey.trace.of(member.name)[0].input
    if not last and not linear and own_input is not None and x.dim() != own_input.dim():
        return f"the input of {source or 'the network'} is no image {tuple(x.shape[1:])}"
    return x.shape[-1] if last else x.shape[1], x.dim() - 2, last


def _why_alone(survey: Survey, name: str, first: str, source: str, spans: bool) -> str | None:
    """Why a layer cannot borrow the coefficients of `source`, or None."""
    mine, other = (cast(Tensor, survey.sites[layer].module.weight) for layer in (name, first))
    if (mine.device, mine.dtype) != (other.device, other.dtype):
        return f"{mine.dtype} on {mine.device}, unlike the first layer of {source or 'the network'}"
    if survey.trace is None:
        return None
    order = {id(call): i for i, call in enumerate(survey.trace.calls)}
    sources = survey.trace.of(source)
    for call in survey.trace.of(name):
        if source and source not in call.parents and not (spans and order[id(sources[0])] < order[id(call)]):
            return f"also called outside of {source}"
        if _batch(call) != _batch(sources[0]):
            return f"its batch is not that of {source or 'the network'} (windows, regions)"
    return None


def _batch(call: Call) -> int | None:
    return None if call.input is None else call.input.shape[0]
