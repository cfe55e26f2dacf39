"""Everything that an analysis found, in one record: what figures, tables, advice and report are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from condconv.analysis.collect import Collection, RoutingGroup
from condconv.analysis.measures import Measures, mean_off_diagonal, measure, weight_similarity
from condconv.layers import ConditionalLayer
from condconv.routers import annealed_gates
from condconv.routing_hooks import layer_of


@dataclass(frozen=True)
class ImageAccess:
    """How the report gets at single images: stored pixels uint8 (ch, H, W), and the name for messages."""

    load: Callable[[int], Tensor]
    where: Callable[[int], str]


@dataclass(frozen=True)
class Analysis:
    """One network on one data set."""

    title: str
    data: str
    classes: tuple[str, ...]
    collection: Collection
    measures: dict[str, Measures]
    """By routing decision, in the order of depth."""
    weight_similarity: dict[str, Tensor]
    """Cosine between the kernels of each pair of experts, (n, n), by layer; NaN where coefficients have no kernels."""
    temperatures: dict[str, float]
    """Where the annealed gates stand, by routing decision."""
    skipped: tuple[str, ...] = ()
    """Samples that the data set left out when it was opened."""

    @property
    def groups(self) -> tuple[RoutingGroup, ...]:
        """The routing decisions, in the order of depth."""
        return self.collection.groups

    @property
    def missing_classes(self) -> list[str]:
        """Classes of which no image was seen."""
        return [self.classes[i] for i in (self.collection.class_place < 0).nonzero().flatten().tolist()]

    def group_weight_similarity(self, group: RoutingGroup) -> float:
        """Mean cosine between experts' kernels, over the layers of a routing decision."""
        means = [mean_off_diagonal(self.weight_similarity[name]) for name in group.layers]
        return sum(means) / len(means)


def summarise(
    model: nn.Module,
    collection: Collection,
    *,
    title: str,
    data: str,
    classes: Sequence[str],
    skipped: Sequence[str] = (),
) -> Analysis:
    """Compute all numbers from what one pass brought together, and from the weights of the network."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ConditionalLayer)}
    return Analysis(
        title=title,
        data=data,
        classes=tuple(classes),
        collection=collection,
        measures={group.name: measure(collection.totals.of(group.name)) for group in collection.groups},
        weight_similarity={
            name: _similarity(layers[layer_of(name)], group.num_experts)
            for group in collection.groups
            for name in group.layers
        },
        temperatures=_temperatures(model, layers, collection.groups),
        skipped=tuple(skipped),
    )


def _similarity(layer: ConditionalLayer, coefficients: int) -> Tensor:
    experts = layer.bank.experts()
    if experts is None or len(experts) != coefficients:
        return torch.full((coefficients, coefficients), torch.nan)
    return weight_similarity(experts)


def _temperatures(
    model: nn.Module, layers: dict[str, ConditionalLayer], groups: Sequence[RoutingGroup]
) -> dict[str, float]:
    temperatures = {}
    for group in groups:
        layer = layers[layer_of(group.layers[0])]
        # A shared router is a child of the module that its scope is named after.
        owner = layer if layer.scope is None else getattr(model.get_submodule(layer.scope.name), "router", None)
        for gate in annealed_gates(owner) if isinstance(owner, nn.Module) else ():
            temperatures[group.name] = gate.value
    return temperatures
