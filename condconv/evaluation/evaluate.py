"""A network on labelled images, for any task: one pass over the validation images, whose outputs the task adds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from condconv.analysis.analyze import Grouping
from condconv.analysis.collect import INTACT, Collector
from condconv.data import EpochSampler, Source
from condconv.errors import DataError
from condconv.evaluation.routing import RoutingStatistics, experts_by_layer
from condconv.routing_hooks import override_routing, record_routing
from condconv.signals import leave_signals_to_parent

F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)


class Evaluator(Protocol[F_co]):
    """Adds up what a network makes of the images."""

    def add(self, output: Any, batch: Sequence[Any]) -> None:
        """Add a batch: the network's output, and what it was made from. Blank samples are in it."""

    def found(self) -> F_co:
        """What was found; it has a `score`."""


class Evaluable(Grouping, Protocol):
    """What is asked of a task here, see `condconv.tasks.base.Task`."""

    def run(self, network: Callable[..., Any], batch: Sequence[Any]) -> Any:
        """The network's output."""

    def averaged(self, outputs: Sequence[Any]) -> Any:
        """One output for several views of the same images."""

    def evaluator(self, source: Source, view: Any) -> Evaluator[Any]:
        """What adds up the outputs."""


@dataclass(frozen=True)
class Evaluation(Generic[F]):
    """What the task's evaluator found; mean coefficients (groups, n) by layer; files that could not be decoded."""

    found: F
    routing: dict[str, Tensor]
    damaged: list[str]

    def left_out(self, source: Source, why: str = "cannot be decoded") -> list[str]:
        """Paragraphs of Markdown that list what is missing in it; none where nothing is."""
        problems = [*(f"{name}: {why}" for name in self.damaged), *source.skipped]
        if not problems:
            return []
        return [f"Left out ({len(problems)}):", "\n".join(f"* {problem}" for problem in problems)]


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    source: Source,
    task: Evaluable,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    skip_bad: bool = False,
    tta: bool = False,
    shuffle: bool = False,
    collector: Collector | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation[Any]:
    """Run a network over the validation images of a set.

    Args:
        network: of the task; put on `device` and into eval mode.
        source: its validation images are used, prepared as it says.
        task: says how.
        batch_size: images of one step.
        workers: loader processes.
        device: where to compute.
        skip_bad: leave out images that cannot be decoded, and name them, instead of stopping.
        tta: answer with the mean over each image and its mirror image; routing is that of the image.
        shuffle: take the images in an order that is random and always the same.
        collector: is shown every batch too, so that its analysis needs no pass of its own; it wants them shuffled.
        progress: is told how many images are done, and of how many.

    Raises:
        ArgumentError: the network is for other data.
        DataError: an image cannot be decoded, or none can.
    """
    network.to(device).eval()
    layers = experts_by_layer(network)
    statistics = RoutingStatistics(layers, len(task.groups(source)))
    view = task.view(source, train=False, skip_bad=skip_bad)
    evaluator = task.evaluator(source, view)
    damaged: list[str] = []
    done = 0
    for batch in evaluation_loader(view, task, batch_size, workers, shuffle=shuffle):
        on_device = [batch[0].to(device), *batch[1:]]
        if layers:
            with record_routing(network) as routing:
                output = task.run(network, on_device)
            parts, groups = routing.parts(len(batch[0])), task.group_of(batch)
            statistics.update(parts, groups)
            if collector is not None:
                collector.observe(on_device[0], groups, batch[2], batch[3], output, parts)
        else:
            output = task.run(network, on_device)
        if tta:
            output = mirrored_too(task, network, on_device, output)
        damaged += [source.val.where(place) for place in batch[2][~batch[3]].tolist()]
        evaluator.add(output, batch)
        done += len(batch[0])
        progress(done, len(source.val))
    if len(damaged) == len(source.val):
        raise DataError(f"{source.name}: none of the {len(damaged)} validation images can be decoded, as {damaged[0]}")
    return Evaluation(evaluator.found(), statistics.compute().means if layers else {}, damaged)


def mirrored_too(task: Evaluable, network: Callable[..., Any], batch: Sequence[Any], output: Any) -> Any:
    """The mean of the output for a batch of images (B, C, H, W) and of that for their mirror images."""
    return task.averaged([output, task.run(network, [batch[0].flip(-1), *batch[1:]])])


def scores_with(
    changes: Sequence[str], network: nn.Module, source: Source, task: Evaluable, **how: Any
) -> dict[str, float]:
    """The score with changed coefficients, by the name of the change: of `condconv.override_routing`, or `INTACT`.

    Args:
        changes: names.
        network: of the task, with conditional layers.
        source: its validation images are used.
        task: says how.
        **how: batch size, workers and device, see `evaluate`.
    """
    found = {}
    for name in changes:
        with nullcontext() if name == INTACT else override_routing(network, name):
            found[name] = float(evaluate(network, source, task, shuffle=True, **how).found.score)
    return found


def evaluation_loader(
    view: Any, task: Evaluable, batch_size: int, workers: int, first: int = 0, shuffle: bool = False
) -> DataLoader[Any]:
    """The samples of a view in their order, from the one numbered `first` on; or shuffled."""
    sampler = EpochSampler(len(view), shuffle=shuffle)
    sampler.resume(0, first)
    return DataLoader(
        view,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=task.collate,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),
    )
