"""`analyze`: one network, one data set, one pass, one report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from condconv.analysis.collect import COUNTERFACTUAL_IMAGES, Collection, collect, routing_groups
from condconv.analysis.curves import RecordedNetwork
from condconv.analysis.figures import resolve_classes, resolve_layers
from condconv.analysis.report import write_report
from condconv.analysis.results import Analysis, ImageAccess, summarise
from condconv.data import EpochSampler, ImageView, Source
from condconv.errors import argument_error
from condconv.files import require_writable
from condconv.signals import ignore_interrupts


class Grouping(Protocol):
    """What is asked of a task here, see `condconv.tasks.base.Task`: samples, and by what their routing is reported."""

    collate: Any

    def view(self, source: Source, *, train: bool, skip_bad: bool = False) -> Any:
        """The samples; they begin with image, target, place, and whether it could be decoded."""

    def groups(self, source: Source) -> tuple[str, ...]:
        """Names of the groups."""

    def group_of(self, batch: Sequence[Any]) -> Tensor:
        """The group of each image: int64 (B,)."""


def examine(
    model: nn.Module,
    source: Source,
    *,
    title: str,
    limit: int | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    counterfactual_images: int = COUNTERFACTUAL_IMAGES,
    task: Grouping | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Analysis, ImageAccess]:
    """Run a network over the validation images of a data set, once and in random order, and compute all numbers.

    Args:
        model: a network with conditional layers, on the device to use.
        source: a data set of `condconv.data.open_source`.
        title: name of the network in the report.
        limit: at most this many images, drawn at random.
        batch_size: images of one step.
        workers: loader processes; none for a set in memory, else one for each core up to eight, where None.
        counterfactual_images: how many images are also run with changed coefficients.
        task: what the network is for; routing is reported by its groups in place of classes. None: classification.
        progress: is told how many images are done, and of how many.

    Raises:
        ArgumentError: no conditional layer, a compiled model, or images with another number of channels.
        DataError: not one usable image.
    """
    routing_groups(model)
    require_channels(model, source)
    source = source.limited(None, limit)
    total = len(source.val)
    collection = collect(
        model,
        validation_batches(source, batch_size, workers, task),
        len(_groups(source, task)),
        counterfactual_images=counterfactual_images,
        progress=None if progress is None else lambda done: progress(done, total),
    )
    return conclude(model, source, collection, title=title, task=task)


def conclude(
    model: nn.Module, source: Source, collection: Collection, *, title: str, task: Grouping | None = None
) -> tuple[Analysis, ImageAccess]:
    """Compute all numbers from what a pass over the validation images brought together; see `examine`."""
    name = f"{source.name}, {len(source.val):,} validation images"
    groups = _groups(source, task)
    found = summarise(model, collection, title=title, data=name, classes=groups, skipped=source.skipped)
    return found, ImageAccess(source.val.load, source.val.where)


def _groups(source: Source, task: Grouping | None) -> tuple[str, ...]:
    return source.classes if task is None else task.groups(source)


def analyze(
    model: nn.Module,
    source: Source,
    out: str | Path,
    *,
    title: str,
    limit: int | None = None,
    workers: int | None = None,
    runs: Sequence[RecordedNetwork] = (),
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    task: Grouping | None = None,
    progress: Callable[[int, int], None] | None = None,
    replace: bool = False,
) -> Path:
    """Analyse a network on the validation images of a data set, write the report, and return its folder.

    See `examine` and `condconv.analysis.write_report` for arguments and errors.
    """
    # What can be wrong is better said before the pass than after it.
    if layers is not None:
        resolve_layers(routing_groups(model), layers)
    if classes is not None:
        resolve_classes(_groups(source, task), classes)
    require_writable(out)
    found, images = examine(model, source, title=title, limit=limit, workers=workers, task=task, progress=progress)
    return write_report(out, found, images=images, runs=runs, layers=layers, classes=classes, replace=replace)


def validation_batches(
    source: Source, batch_size: int, workers: int | None = None, task: Grouping | None = None
) -> Iterator[Sequence[Tensor]]:
    """Yield images, labels (or a task's groups), places and whether they could be decoded, of the validation set.

    The order is random and always the same; damaged images are marked.
    """
    if workers is None:
        workers = 0 if source.in_memory else min(8, os.cpu_count() or 1)
    make = ImageView if task is None else task.view
    batches: DataLoader[Any] = DataLoader(
        make(source, train=False, skip_bad=True),
        batch_size=batch_size,
        sampler=EpochSampler(len(source.val), shuffle=True),
        num_workers=workers,
        worker_init_fn=ignore_interrupts,
        generator=torch.Generator(),
        collate_fn=None if task is None else task.collate,
    )
    for batch in batches:
        yield batch if task is None else (batch[0], task.group_of(batch), batch[2], batch[3])


def require_channels(model: nn.Module, source: Source) -> None:
    """Raise `ArgumentError` unless the images have as many channels as the network begins with."""
    first = next((m for m in model.modules() if isinstance(getattr(m, "kernel_size", None), tuple)), None)
    channels = getattr(first, "in_channels", source.channels)
    if channels != source.channels:
        rule = f"has images of {source.channels} channels, and the network begins with {channels}"
        raise argument_error("data", "--data", source.name, rule, "pass the kind of images it was trained on")
