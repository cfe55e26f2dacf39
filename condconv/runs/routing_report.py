"""What `condconv.analysis` says about the routing of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from condconv.analysis import Analysis, RecordedNetwork, conclude, write_report
from condconv.analysis.collect import COUNTERFACTUAL_IMAGES, INTACT, Collection
from condconv.analysis.curves import MEASURED
from condconv.analysis.report import PAGE
from condconv.data import Source
from condconv.evaluation.evaluate import scores_with
from condconv.runs.folder import RunFolder
from condconv.runs.metrics import EpochRow
from condconv.runs.networks import NetworkSpec
from condconv.tasks.base import Task

_BATCH = 128


@dataclass(frozen=True)
class RoutingFound:
    """The page of a run's routing report, and what routing did in one sentence."""

    page: Path
    sentence: str


def routing_report(
    folder: RunFolder,
    task: Task,
    source: Source,
    network: nn.Module,
    collection: Collection,
    recorded: Sequence[tuple[NetworkSpec, Sequence[EpochRow]]],
) -> RoutingFound:
    """Write the report on the conditional network of a run, its folder `report`.

    Args:
        folder: of the run.
        task: what was trained.
        source: the data set; its validation images are used.
        network: the conditional one, after its last epoch.
        collection: what it did on the validation images.
        recorded: the epochs of all networks of the run.
    """
    runs = [
        RecordedNetwork(folder.path.name, spec.name, spec.cost.macs, [_measured(row) for row in rows])
        for spec, rows in recorded
        if task.score.column in MEASURED
    ]
    found, images = conclude(network, source, collection, title=folder.path.name, task=task)
    report = write_report(folder.path / "report", found, images=images, runs=runs, replace=True)
    return RoutingFound(report / PAGE, what_routing_did(found, task, network, source))


def what_routing_did(found: Analysis, task: Task, network: nn.Module, source: Source) -> str:
    """In one sentence: what is left of the score with others' coefficients, and how much these vary."""
    changed = found.collection.counterfactuals
    measures = [found.measures[group.name] for group in found.groups]
    spread = sum(measure.spread for measure in measures) / len(measures)
    if not changed:
        few = source.limited(None, COUNTERFACTUAL_IMAGES)
        how = {"batch_size": _BATCH, "workers": 0, "device": next(network.parameters()).device, "skip_bad": True}
        scores = scores_with((INTACT, "mean", "shuffle"), network, few, task, **how)
        shown = {name: f"{task.score.shown(value)} {task.score.unit}" for name, value in scores.items()}
        return (
            f"What routing did: on {len(few.val):,} validation images the {task.score.title} is {shown[INTACT]} with "
            f"each image's own kernels, {shown['mean']} with the mean of a batch's kernels, and {shown['shuffle']} "
            f"with those of another image; the spread of the coefficients between images is {spread:.3f}."
        )
    return (
        f"What routing did: on {changed['intact'].images:,} validation images the network is right for "
        f"{changed['intact'].value:.1%} with each image's own kernels, for {changed['mean'].value:.1%} with the mean "
        f"of all images' kernels, and for {changed['shuffle'].value:.1%} with those of another image; the spread of "
        f"the coefficients between images is {spread:.3f}."
    )


def _measured(row: EpochRow) -> dict[str, float]:
    """The numbers of an epoch; NaN for a temperature where there is none."""
    return {name: float(row[name]) if row[name] != "" else float("nan") for name in MEASURED}
