"""What routing looked like over a data set: sums that stream, whatever its size, and whether the routers are well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from condconv.analysis.totals import HIGH, nearly_always, off_below
from condconv.data import IGNORED
from condconv.layers import ConditionalLayer
from condconv.routing_hooks import part_names


def experts_by_layer(model: nn.Module) -> dict[str, int]:
    """Name → number of coefficients, of every slice of every conditional layer's routing, in the order of the modules.

    The names are those of `condconv.routing_hooks.part_names`: the layer's own, where its experts are all there is.
    """
    return {
        label: part.length
        for name, layer in _layers(model)
        for label, part in zip(part_names(name, layer.slices), layer.slices.parts, strict=True)
    }


def routed_together(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The conditional layers by router: the first layer of each → all that use the same coefficients."""
    by_router: dict[tuple[int, str], list[str]] = {}
    for name, layer in _layers(model):
        for label, part in zip(part_names(name, layer.slices), layer.slices.names, strict=True):
            by_router.setdefault((id(layer.scope or layer), part), []).append(label)
    return {names[0]: tuple(names) for names in by_router.values()}


def _layers(model: nn.Module) -> list[tuple[str, ConditionalLayer]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, ConditionalLayer)]


class RouterHealth(NamedTuple):
    """How one router was over a data set.

    `entropy`: mean over the images, see `RoutingStatistics`. `dead`, `always_on`: experts whose coefficient is off, on,
    for at least 99.9 % of the images; off is below `off_below`, on above 0.95. `bimodality`: 2 min(part of all
    coefficients that is off, part that is on): 1 if half are off and half on, 0 if one of the two does not occur.
    """

    experts: int
    entropy: float
    dead: tuple[int, ...]
    always_on: tuple[int, ...]
    bimodality: float


class RoutingSummary(NamedTuple):
    """`means`: (classes, n) by layer name, NaN for a class never seen; `entropy`: over all layers and images."""

    means: dict[str, Tensor]
    entropy: float
    health: dict[str, RouterHealth]


class RoutingStatistics(Metric):
    """Mean coefficient by layer, class and expert, and the health of each layer's routing.

    The entropy of an example in a layer is -Σ p log p / log n with p = coefficients / their sum: 1 where all experts
    weigh the same, 0 where one expert does it all (and 0 for n = 1).
    """

    full_state_update = False
    count: Tensor
    seen: Tensor
    entropy: Tensor

    def __init__(self, layers: Mapping[str, int], num_classes: int) -> None:
        super().__init__(sync_on_compute=True)
        self.layers = dict(layers)
        self.num_classes = num_classes
        shapes: dict[str, tuple[int, ...]] = {"count": (num_classes,)}
        shapes |= {"seen": (len(layers),), "entropy": (len(layers),)}
        for index, experts in enumerate(self.layers.values()):
            shapes |= {f"sum_{index}": (num_classes, experts), f"low_{index}": (experts,), f"high_{index}": (experts,)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, routing: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add one batch: coefficients (B, n) by layer name, labels (B,). Examples labelled `IGNORED` don't count.

        A layer that ran k times on the batch has (k B, n), and counts with the mean of its calls.
        """
        keep = (labels != IGNORED).cpu()
        classes = labels.cpu()[keep]
        device = self.count.device
        self.count += torch.bincount(classes, minlength=self.num_classes).to(self.count)
        for index, name in enumerate(self.layers):
            if name not in routing:
                continue
            calls = routing[name].double().unflatten(0, (-1, len(labels)))  # (k, B, n)
            coefficients = calls.mean(dim=0)[keep].to(device)
            self._state("sum", index).index_add_(0, classes.to(device), coefficients)
            self._state("low", index).add_((coefficients < off_below(coefficients.shape[1])).sum(dim=0))
            self._state("high", index).add_((coefficients > HIGH).sum(dim=0))
            self.seen[index] += len(coefficients)
            self.entropy[index] += normalised_entropy(coefficients).sum()

    def compute(self) -> RoutingSummary:
        """Summarise what was seen since the last reset."""
        means = {
            name: (self._state("sum", index) / self.count[:, None]).float().cpu()
            for index, name in enumerate(self.layers)
        }
        health = {name: self._health(index) for index, name in enumerate(self.layers) if self.seen[index] > 0}
        return RoutingSummary(means, float(self.entropy.sum() / self.seen.sum()), health)

    def _health(self, index: int) -> RouterHealth:
        seen, low, high = self.seen[index], self._state("low", index), self._state("high", index)
        near_zero, near_one = (float(count.mean() / seen) for count in (low, high))
        return RouterHealth(
            experts=len(low),
            entropy=float(self.entropy[index] / seen),
            dead=nearly_always(low, int(seen)),
            always_on=nearly_always(high, int(seen)),
            bimodality=2 * min(near_zero, near_one),
        )

    def _state(self, name: str, index: int) -> Tensor:
        state: Tensor = getattr(self, f"{name}_{index}")
        return state


def normalised_entropy(coefficients: Tensor) -> Tensor:
    """Entropy of each example's coefficients, normalised as in `RoutingStatistics`: (B, n) → (B,)."""
    experts = coefficients.shape[1]
    if experts == 1:
        return torch.zeros(len(coefficients), dtype=coefficients.dtype, device=coefficients.device)
    weights = coefficients.abs()  # Not every gate is positive.
    shares = weights / weights.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1) / torch.log(torch.tensor(float(experts)))
