"""Finding the blocks of a network: the units whose layers share one routing in both papers.

A block is recognised by structure, not by a list of names. It is the outermost module that

* holds at least two layers with weights (squeeze-excite layers apart),
* is no container (`nn.Sequential`, …, or what wraps a block), not the model itself and no stage: a stage is a module of
  a class that somewhere holds two or more such modules of one class, and
* repeats: its class occurs at least twice, or it stands among blocks whose class does.

This gives inverted bottlenecks, separable and residual blocks in timm's and torchvision's networks. A layer outside of
every block routes for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from condconv.counting.rules import is_squeeze_excite
from condconv.layers import ConditionalBlock, ConditionalLayer
from condconv.routers import Router

_CONTAINERS = {nn.Sequential, nn.ModuleList, nn.ModuleDict}


@dataclass(frozen=True)
class Block:
    """A unit of the network that repeats."""

    name: str
    layers: tuple[str, ...]
    """Its layers with weights, in the order of `find_blocks`' argument."""

    @property
    def parent(self) -> str:
        """Name of the module that it stands in."""
        return self.name.rpartition(".")[0]


def has_weights(module: nn.Module) -> bool:
    """Whether `module` is a convolution or a linear layer, static or conditional."""
    return isinstance(module, (_ConvNd, nn.Linear, ConditionalLayer))


def squeeze_excite_layers(model: nn.Module) -> set[str]:
    """Return the names of everything inside of squeeze-excite modules."""
    return {
        f"{name}.{child}"
        for name, module in model.named_modules()
        if is_squeeze_excite(module)
        for child, _ in module.named_modules()
        if child
    }


def find_blocks(model: nn.Module, layers: Sequence[str], called: Collection[str] | None = None) -> list[Block]:
    """Return the blocks of `model`, ordered by their first layer.

    Args:
        model: Any network.
        layers: Names of its layers with weights, by depth.
        called: Names of the modules that a forward pass calls; a block has to be called as a unit. None: unknown.
    """
    modules = dict(model.named_modules())
    candidates = _candidates(model, modules, called)
    stages = _stage_classes(candidates, modules)
    units = [name for name in candidates if type(modules[name]) not in stages]
    repeating = {kind for kind, count in Counter(type(modules[name]) for name in units).items() if count > 1}
    nests = {_nest(name, modules) for name in units if type(modules[name]) in repeating}
    blocks = {name for name in units if type(modules[name]) in repeating or _nest(name, modules) in nests}
    members: dict[str, list[str]] = {}
    for layer in layers:
        outermost = next((name for name in _ancestors(layer) if name in blocks), None)
        if outermost is not None:
            members.setdefault(outermost, []).append(layer)
    return [Block(name, tuple(inside)) for name, inside in members.items()]


def _candidates(model: nn.Module, modules: dict[str, nn.Module], called: Collection[str] | None) -> list[str]:
    excluded = squeeze_excite_layers(model)
    routers = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Router))
    held: Counter[str] = Counter()
    for name, module in modules.items():
        if has_weights(module) and name not in excluded and not name.startswith(routers):
            held.update(_ancestors(name))
    return [
        name
        for name, count in held.items()
        if count > 1
        and name
        and not _is_container(modules[name])
        and not is_squeeze_excite(modules[name])
        and (called is None or name in called)
    ]


def _stage_classes(candidates: Iterable[str], modules: dict[str, nn.Module]) -> set[type[nn.Module]]:
    inside: dict[str, Counter[type[nn.Module]]] = {}
    known = set(candidates)
    for name in known:
        for ancestor in _ancestors(name):
            if ancestor in known:
                inside.setdefault(ancestor, Counter())[type(modules[name])] += 1
    return {type(modules[name]) for name, classes in inside.items() if max(classes.values()) > 1}


def _nest(name: str, modules: dict[str, nn.Module]) -> str:
    """Return the nearest ancestor that is not a container: blocks below one such module stand among each other."""
    ancestors = list(_ancestors(name))
    return next((a for a in reversed(ancestors) if not _is_container(modules[a])), "")


def _is_container(module: nn.Module) -> bool:
    return type(module) in _CONTAINERS or isinstance(module, ConditionalBlock)


def _ancestors(name: str) -> list[str]:
    """Return the names of the modules around `name`, the model ("") first; the model itself has none."""
    if not name:
        return []
    parts = name.split(".")
    return ["", *(".".join(parts[:i]) for i in range(1, len(parts)))]
