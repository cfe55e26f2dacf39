"""The numbers behind the figures, as CSV: one file for each, written row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from condconv.analysis.curves import MEASURED, RecordedNetwork
from condconv.analysis.figures import TOP_CLASSES
from condconv.analysis.results import Analysis
from condconv.analysis.totals import HISTOGRAM_BINS
from condconv.safe_text import write_csv

Cells = Sequence[object]

DEPTH_COLUMNS = (
    "layer", "shared_by", "experts", "images", "nonfinite", "outside_0_1", "entropy", "effective_experts",
    "effective_overall", "mutual_information_bits", "class_information", "variance_between", "spread", "near_zero",
    "near_one", "dead", "always_on", "weight_similarity", "coefficient_similarity", "temperature", "top1_mass",
    "top2_mass", "top4_mass",
)  # fmt: skip


def write_tables(folder: Path, analysis: Analysis, runs: Sequence[RecordedNetwork] = ()) -> list[str]:
    """Write all tables into a folder and return their names."""
    tables: dict[str, Callable[[], Iterator[Cells]]] = {
        "mean_by_class.csv": lambda: _mean_by_class(analysis),
        "histogram.csv": lambda: _histogram(analysis),
        "top_classes.csv": lambda: _top_classes(analysis),
        "attention.csv": lambda: _attention(analysis),
        "counterfactuals.csv": lambda: _counterfactuals(analysis),
        "depth.csv": lambda: _depth(analysis),
        "experts.csv": lambda: _experts(analysis),
        "similarity.csv": lambda: _similarity(analysis),
    }
    if runs:
        tables["runs.csv"] = lambda: _runs(runs)
    for name, rows in tables.items():
        head, *lines = rows()
        write_csv(folder / name, list(map(str, head)), lines)
    return list(tables)


def _number(value: float) -> str:
    """Seven significant digits; an empty cell for what cannot be computed."""
    return "" if value != value else f"{value:.7g}"


def _numbers(values: Tensor) -> list[str]:
    return [_number(value) for value in values.tolist()]


def _mean_by_class(analysis: Analysis) -> Iterator[Cells]:
    """A row for each layer, class and expert; layers that share a router repeat its numbers."""
    yield "layer", "class", "expert", "mean", "std", "count"
    for group in analysis.groups:
        m = analysis.measures[group.name]
        means, stds, counts = m.class_mean.tolist(), m.class_std.tolist(), m.class_count.tolist()
        for layer in group.layers:
            for label, name in enumerate(analysis.classes):
                for expert in range(m.num_experts):
                    mean, std = _number(means[label][expert]), _number(stds[label][expert])
                    yield layer, name, expert, mean, std, counts[label]


def _histogram(analysis: Analysis) -> Iterator[Cells]:
    yield "layer", "from", "to", "share"
    for name, m in analysis.measures.items():
        for index, share in enumerate(m.histogram.mean(dim=0).tolist()):
            yield name, index / HISTOGRAM_BINS, (index + 1) / HISTOGRAM_BINS, _number(share)


def _top_classes(analysis: Analysis) -> Iterator[Cells]:
    yield "layer", "expert", "rank", "class", "mean", "std", "count"
    for name, m in analysis.measures.items():
        seen = m.class_count.nonzero().flatten()
        for expert in range(m.num_experts):
            order = m.class_mean[seen, expert].argsort(descending=True, stable=True)[:TOP_CLASSES]
            for rank, label in enumerate(seen[order].tolist(), start=1):
                mean, std = _numbers(m.class_mean[label, expert].view(1)), _numbers(m.class_std[label, expert].view(1))
                yield name, expert, rank, analysis.classes[label], *mean, *std, int(m.class_count[label])


def _attention(analysis: Analysis) -> Iterator[Cells]:
    yield "layer", "rank", "mean_share", "top_k_mass"
    for name, m in analysis.measures.items():
        for rank, (share, mass) in enumerate(zip(_numbers(m.rank_share), _numbers(m.top_k_mass), strict=True), start=1):
            yield name, rank, share, mass


def _counterfactuals(analysis: Analysis) -> Iterator[Cells]:
    yield "coefficients", "accuracy", "images"
    for name, accuracy in analysis.collection.counterfactuals.items():
        yield name, _number(accuracy.value), accuracy.images


def _depth(analysis: Analysis) -> Iterator[Cells]:
    yield DEPTH_COLUMNS
    for group in analysis.groups:
        m = analysis.measures[group.name]
        masses = m.top_k_mass[[min(k, m.num_experts) - 1 for k in (1, 2, 4)]]
        numbers = (
            m.entropy, m.effective_experts, m.effective_overall, m.mutual_information, m.class_information,
            m.variance_between, m.spread, m.near_zero, m.near_one,
        )  # fmt: skip
        similarities = (analysis.group_weight_similarity(group), m.coefficient_similarity)
        temperature = analysis.temperatures.get(group.name, float("nan"))
        yield (
            group.name, " ".join(group.layers), group.num_experts, m.images, m.nonfinite, m.outside,
            *map(_number, numbers), len(m.dead), len(m.always_on), *map(_number, similarities), _number(temperature),
            *_numbers(masses),
        )  # fmt: skip


def _experts(analysis: Analysis) -> Iterator[Cells]:
    yield "layer", "expert", "mean", "std", "largest", "mutual_information_bits", "dead", "always_on"
    for name, m in analysis.measures.items():
        columns = zip(*map(_numbers, (m.mean, m.std, m.largest, m.information)), strict=True)
        for expert, numbers in enumerate(columns):
            yield name, expert, *numbers, int(expert in m.dead), int(expert in m.always_on)


def _similarity(analysis: Analysis) -> Iterator[Cells]:
    yield "layer", "expert_a", "expert_b", "weight_cosine", "coefficient_correlation"
    for group in analysis.groups:
        correlation = analysis.measures[group.name].correlation.tolist()
        for layer in group.layers:
            cosine = analysis.weight_similarity[layer].tolist()
            for a in range(group.num_experts):
                for b in range(a + 1, group.num_experts):
                    yield layer, a, b, _number(cosine[a][b]), _number(correlation[a][b])


def _runs(runs: Sequence[RecordedNetwork]) -> Iterator[Cells]:
    yield "run", "network", "macs", *MEASURED
    for network in runs:
        for row in network.epochs:
            yield network.run, network.network, network.macs, *(_number(row[name]) for name in MEASURED)
