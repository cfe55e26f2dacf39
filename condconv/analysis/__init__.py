"""See what the experts do: routing → statistics → figures → a report in one HTML file."""

from condconv.analysis.advice import Advice, advise
from condconv.analysis.analyze import analyze, conclude, examine, validation_batches
from condconv.analysis.collect import Collection, RoutingGroup, collect, routing_groups
from condconv.analysis.curves import RecordedNetwork
from condconv.analysis.measures import DEFINITIONS, Measures, measure
from condconv.analysis.report import write_report
from condconv.analysis.results import Analysis, ImageAccess, summarise
from condconv.analysis.totals import RoutingTotals, Totals

__all__ = [
    "DEFINITIONS",
    "Advice",
    "Analysis",
    "Collection",
    "ImageAccess",
    "Measures",
    "RecordedNetwork",
    "RoutingGroup",
    "RoutingTotals",
    "Totals",
    "advise",
    "analyze",
    "collect",
    "conclude",
    "examine",
    "measure",
    "routing_groups",
    "summarise",
    "validation_batches",
    "write_report",
]
