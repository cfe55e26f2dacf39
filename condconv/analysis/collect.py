"""One pass over the data: runs the network, adds up its routing, and keeps a few images. Its memory does not grow with
the number of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condconv.analysis.totals import RoutingTotals
from condconv.counting.trace import evaluating
from condconv.errors import ArgumentError, DataError
from condconv.layers import ConditionalLayer
from condconv.routing_hooks import interventions, override_routing, part_names, record_routing

INTACT = "intact"
SAMPLE_IMAGES = 160
COUNTERFACTUAL_IMAGES = 2000
_MOST_NAMED = 20


@dataclass(frozen=True)
class RoutingGroup:
    """One routing decision: its name, n, and the layers that use it (one, or those that share a router).

    A layer with other coefficients than mixing weights has one for each slice, named "layer:slice".
    """

    name: str
    num_experts: int
    layers: tuple[str, ...]


@dataclass
class Problems:
    """What was wrong with the data or the routing: counts, and the first few of each by name."""

    undecodable: int = 0
    undecodable_images: list[int] = field(default_factory=list)
    unlabelled: int = 0
    nonfinite: Counter[str] = field(default_factory=Counter)
    """Routing decision → images with a coefficient that is not finite."""
    nonfinite_images: list[int] = field(default_factory=list)
    never_ran: list[str] = field(default_factory=list)
    """Conditional layers that the network did not call."""

    def note(self, decoded: Tensor, usable: Tensor, places: Tensor) -> None:
        """Count what is left out of a batch: decoded (B,), usable (B,), places (B,)."""
        self.undecodable += int((~decoded).sum())
        _name(self.undecodable_images, places[~decoded])
        self.unlabelled += int((decoded & ~usable).sum())


@dataclass
class Accuracy:
    """Images classified right, of how many."""

    right: int = 0
    images: int = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, C), labels (B,)."""
        self.right += int((logits.argmax(dim=1).cpu() == labels).sum())
        self.images += len(labels)

    @property
    def value(self) -> float:
        """Share of the images that is right; NaN for none."""
        return self.right / self.images if self.images else float("nan")


@dataclass
class Collection:
    """What one pass brought together.

    `sample_places` are the images of the explorer, in the order of `sample_coefficients` (images, n) by routing name;
    `class_place` has one image of each class, -1 for none.
    """

    groups: tuple[RoutingGroup, ...]
    totals: RoutingTotals
    class_place: Tensor
    sample_places: list[int] = field(default_factory=list)
    sample_labels: list[int] = field(default_factory=list)
    sample_coefficients: dict[str, Tensor] = field(default_factory=dict)
    accuracy: Accuracy = field(default_factory=Accuracy)
    counterfactuals: dict[str, Accuracy] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)


def routing_groups(model: nn.Module) -> tuple[RoutingGroup, ...]:
    """Return the routing decisions of a network in the order of its modules; layers that share one are one group.

    Raises:
        ArgumentError: no conditional layer.
    """
    members: dict[int, list[tuple[str, ConditionalLayer]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, ConditionalLayer):
            members.setdefault(id(module.scope or module), []).append((name, module))
    if not members:
        raise ArgumentError(
            f"analyze: model={type(model).__name__} has no conditional layer, so there is no routing to analyse; "
            "convert it with condconv.convert and train it, or pass the conditional network of the run"
        )
    groups = []
    for layers in members.values():
        name, layer = layers[0]
        title = layer.scope.name or "network" if layer.scope is not None else name or "network"
        labels = zip(*(part_names(name, layer.slices) for name, layer in layers), strict=True)
        for called, part, names in zip(part_names(title, layer.slices), layer.slices.parts, labels, strict=True):
            groups.append(RoutingGroup(called, part.length, names))
    return tuple(groups)


class Collector:
    """Adds batches to a `Collection`; the network is in eval mode and not changed.

    Args:
        model: a network with conditional layers, already on its device.
        num_classes: C of the labels.
        counterfactual_images: how many of the first images are also run with each intervention of
            `condconv.override_routing`.
    """

    def __init__(self, model: nn.Module, num_classes: int, counterfactual_images: int = COUNTERFACTUAL_IMAGES) -> None:
        self.model = model
        self.num_classes = num_classes
        self.counterfactual_images = counterfactual_images
        self.device = next(model.parameters()).device
        self.groups = routing_groups(model)
        self.problems = Problems()
        self.result: Collection | None = None

    @torch.inference_mode()
    def add(self, images: Tensor, labels: Tensor, places: Tensor, decoded: Tensor) -> None:
        """Run one batch: images (B, ch, H, W), labels (B,), places (B,) which images they are, decoded (B,) bool."""
        usable = decoded & (labels >= 0) & (labels < self.num_classes)
        self.problems.note(decoded, usable, places)
        if not bool(usable.all()):
            images, labels, places = images[usable], labels[usable], places[usable]
        if not len(labels):
            return
        images = images.to(self.device)
        with record_routing(self.model) as recorded:
            logits = self.model(images)
        self._add(images, labels, places, logits, recorded.parts())

    @torch.inference_mode()
    def observe(
        self,
        images: Tensor,
        labels: Tensor,
        places: Tensor,
        decoded: Tensor,
        output: Any,
        routing: Mapping[str, Tensor],
    ) -> None:
        """Add a batch that was run already: its output, and its routing, (examples seen, n) by `part_names`."""
        usable = decoded & (labels >= 0) & (labels < self.num_classes)
        self.problems.note(decoded, usable, places)
        if not bool(usable.any()):
            return
        if not bool(usable.all()):
            routing = {name: seen[usable.repeat(len(seen) // len(usable))] for name, seen in routing.items()}
            output = output[usable] if isinstance(output, Tensor) else output
        self._add(images[usable], labels[usable], places[usable], output, routing)

    def _add(self, images: Tensor, labels: Tensor, places: Tensor, output: Any, routing: Mapping[str, Tensor]) -> None:
        """Add usable images, their output, and their routing."""
        if self.result is None:
            self.result = self._empty(list(routing))
        self._add_routing(self.result, routing, labels, places)
        if isinstance(output, Tensor) and output.shape == (len(labels), self.num_classes):
            self._add_accuracy(self.result, output, images, labels)

    def found(self) -> Collection:
        """What was added so far.

        Raises:
            DataError: not one usable image.
        """
        if self.result is None:
            bad, without = self.problems.undecodable, self.problems.unlabelled
            seen = bad + without
            reason = f"{bad} of {seen} cannot be decoded and the rest has no label" if seen else "there are none"
            raise DataError(f"analyze: not one image could be used: {reason}; pass labelled images in --data")
        return self.result

    def _empty(self, ran: Sequence[str]) -> Collection:
        """The collection before the first batch; `ran` are the layers in the order in which they are called."""
        order = {name: place for place, name in enumerate(ran)}
        groups = sorted(
            (group for group in self.groups if not order.keys().isdisjoint(group.layers)),
            key=lambda group: min(order.get(name, len(order)) for name in group.layers),
        )
        self.problems.never_ran = [name for group in self.groups for name in group.layers if name not in order]
        totals = RoutingTotals({group.name: group.num_experts for group in groups}, self.num_classes)
        class_place = torch.full((self.num_classes,), -1, dtype=torch.int64)
        return Collection(tuple(groups), totals, class_place, problems=self.problems)

    def _add_routing(self, result: Collection, routing: Mapping[str, Tensor], labels: Tensor, places: Tensor) -> None:
        by_group = {}
        for group in result.groups:
            name = next((name for name in group.layers if name in routing), None)
            if name is not None:
                by_group[group.name] = routing[name]
        result.totals.update(by_group, labels, places)
        unseen = result.class_place[labels] < 0
        result.class_place[labels[unseen]] = places[unseen]
        for name, coefficients in by_group.items():
            bad = ~coefficients.isfinite().all(dim=1)
            if bool(bad.any()):
                result.problems.nonfinite[name] += int(bad.sum())
                _name(result.problems.nonfinite_images, places.repeat(len(bad) // len(places))[bad])
        room = SAMPLE_IMAGES - len(result.sample_places)
        if room > 0:
            result.sample_places += places[:room].tolist()
            result.sample_labels += labels[:room].tolist()
            for group in result.groups:
                missing = torch.full((len(labels), group.num_experts), torch.nan)
                first_call = by_group.get(group.name, missing)[: len(labels)].float()
                before = result.sample_coefficients.get(group.name, missing[:0])
                result.sample_coefficients[group.name] = torch.cat([before, first_call[:room]])

    def _add_accuracy(self, result: Collection, logits: Tensor, images: Tensor, labels: Tensor) -> None:
        result.accuracy.add(logits, labels)
        if result.accuracy.images - len(labels) >= self.counterfactual_images:
            return
        result.counterfactuals.setdefault(INTACT, Accuracy()).add(logits, labels)
        for name in interventions:
            with override_routing(self.model, name):
                changed = self.model(images)
            result.counterfactuals.setdefault(name, Accuracy()).add(changed, labels)


def collect(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    num_classes: int,
    *,
    counterfactual_images: int = COUNTERFACTUAL_IMAGES,
    progress: Callable[[int], None] | None = None,
) -> Collection:
    """Run a network over batches and add up its routing, in one pass.

    The images should come in random order: the sample of the explorer and the images for the counterfactuals are the
    first ones, and "shuffle" exchanges coefficients inside a batch.

    Args:
        model: a network with conditional layers; put into eval mode for the pass, and back afterwards.
        batches: (images (B, ch, H, W), labels (B,)), and places (B,), decoded (B,) if `condconv.data` made them.
        num_classes: C.
        counterfactual_images: see `Collector`.
        progress: is told how many images are done.

    Raises:
        ArgumentError: no conditional layer, or a compiled model.
        DataError: not one usable image.
    """
    collector = Collector(model, num_classes, counterfactual_images)
    done = 0
    with evaluating(model):
        for images, labels, *rest in batches:
            places = rest[0] if rest else torch.arange(done, done + len(labels))
            decoded = rest[1] if len(rest) > 1 else torch.ones(len(labels), dtype=torch.bool)
            collector.add(images, labels, places, decoded)
            done += len(labels)
            if progress is not None:
                progress(done)
    return collector.found()


def _name(names: list[int], places: Tensor) -> None:
    for place in places.tolist():
        if len(names) < _MOST_NAMED and place not in names:
            names.append(place)
