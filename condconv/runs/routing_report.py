"""What `condconv.analysis` says about the routing of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from condconv.analysis import Analysis, RecordedNetwork, examine, write_report
from condconv.analysis.collect import COUNTERFACTUAL_IMAGES, INTACT
from condconv.analysis.curves import MEASURED
from condconv.analysis.report import PAGE
from condconv.data import Source
from condconv.evaluation.evaluate import scores_with
from condconv.evaluation.routing import experts_by_layer
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
    networks: Sequence[tuple[NetworkSpec, nn.Module, Sequence[EpochRow]]],
    workers: int,
) -> RoutingFound | None:
    """Write the report on the conditional network of a run, its folder `report`; None where the run has none.

    Args:
        folder: of the run.
        task: what was trained.
        source: the data set; its validation images are used.
        networks: all networks of the run after their last epoch, with their epochs.
        workers: loader processes.
    """
    recorded = [
        RecordedNetwork(folder.path.name, spec.name, spec.cost.macs, [_measured(row) for row in rows])
        for spec, _, rows in networks
        if task.score.column in MEASURED
    ]
    for _, network, _ in networks:
        if experts_by_layer(network):
            found, images = examine(network, source, title=folder.path.name, workers=workers, task=task)
            report = write_report(folder.path / "report", found, images=images, runs=recorded, replace=True)
            return RoutingFound(report / PAGE, what_routing_did(found, task, network, source))
    return None


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
