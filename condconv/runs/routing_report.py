"""What `condconv.analysis` says about the routing of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from condconv.analysis import Analysis, RecordedNetwork, examine, write_report
from condconv.analysis.curves import MEASURED
from condconv.analysis.report import PAGE
from condconv.data import Source
from condconv.runs.metrics import EpochRow
from condconv.runs.networks import NetworkSpec
from condconv.evaluation.routing import experts_by_layer
from condconv.runs.folder import RunFolder

@dataclass(frozen=True)
class RoutingFound:
    """The page of a run's routing report, and what routing did in one sentence."""

    page: Path
    sentence: str


def routing_report(
    folder: RunFolder, source: Source, networks: Sequence[tuple[NetworkSpec, nn.Module, Sequence[EpochRow]]], workers: int
) -> RoutingFound | None:
    """Write the report on the conditional network of a run, its folder `report`; None where the run has none.

    Args:
        folder: of the run.
        source: the data set; its validation images are used.
        networks: all networks of the run after their last epoch, with their epochs.
        workers: loader processes.
    """
    recorded = [
        RecordedNetwork(folder.path.name, spec.name, spec.cost.macs, [_measured(row) for row in rows])
        for spec, _, rows in networks
    ]
    for _, network, _ in networks:
        if experts_by_layer(network):
            found, images = examine(network, source, title=folder.path.name, workers=workers)
            report = write_report(folder.path / "report", found, images=images, runs=recorded, replace=True)
            return RoutingFound(report / PAGE, what_routing_did(found))
    return None


def what_routing_did(found: Analysis) -> str:
    """In one sentence: what is left of the accuracy with others' coefficients, and how much these vary."""
    changed = found.collection.counterfactuals
    measures = [found.measures[group.name] for group in found.groups]
    spread = sum(measure.spread for measure in measures) / len(measures)
    return (
        f"What routing did: on {changed['intact'].images:,} validation images the network is right for "
        f"{changed['intact'].value:.1%} with each image's own kernels, for {changed['mean'].value:.1%} with the mean "
        f"of all images' kernels, and for {changed['shuffle'].value:.1%} with those of another image; the spread of "
        f"the coefficients between images is {spread:.3f}."
    )


def _measured(row: EpochRow) -> dict[str, float]:
    """The numbers of an epoch; NaN for a temperature where there is none."""
    return {name: float(row[name]) if row[name] != "" else float("nan") for name in MEASURED}
