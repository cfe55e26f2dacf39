"""The papers' figures for one network: CondConv's 3, 4, 5 and 6, Dynamic Convolution's attention by block and its
checks of the attention (section 5).
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from condconv.analysis.collect import INTACT, RoutingGroup
from condconv.analysis.drawing import (
    COLOUR_MAP,
    COLOURS,
    Drawn,
    coefficient_limit,
    label_classes,
    label_depths,
    label_experts,
    plain,
)
from condconv.analysis.measures import Measures
from condconv.analysis.results import Analysis, ImageAccess
from condconv.errors import DataError, UnknownNameError
from condconv.registry import unknown_name_message

DEPTHS = 4
TOP_CLASSES = 10
SHOWN_EXPERTS = 4
_INTERVENTIONS = {
    INTACT: "as trained",
    "mean": "mean kernel",
    "argmax": "largest expert alone",
    "shuffle": "shuffled across images",
    "shuffle_experts": "shuffled within an image",
}


def resolve_layers(groups: Sequence[RoutingGroup], layers: Sequence[str]) -> list[str]:
    """Return the routing decisions of some layers (or routing decisions).

    Raises:
        UnknownNameError: no conditional layer of that name.
    """
    owner = {name: group.name for group in groups for name in (group.name, *group.layers)}
    for layer in layers:
        if layer not in owner:
            raise UnknownNameError(f"--layers: {unknown_name_message('layer', layer, owner)}")
    return list(dict.fromkeys(owner[layer] for layer in layers))


def resolve_classes(known: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the indices of some classes.

    Raises:
        UnknownNameError: no such class.
    """
    for name in classes:
        if name not in known:
            raise UnknownNameError(f"--classes: {unknown_name_message('class', name, known)}")
    return list(dict.fromkeys(known.index(name) for name in classes))


def even_depths(analysis: Analysis) -> list[str]:
    """Return up to four routing decisions, evenly from the first to the last."""
    names = list(analysis.measures)
    return [names[round(i)] for i in np.linspace(0, len(names) - 1, min(DEPTHS, len(names)))]


def most_different_classes(measures: Measures) -> list[int]:
    """Return the two classes whose mean coefficients differ most; fewer where fewer were seen."""
    seen = measures.class_count.nonzero().flatten()
    if len(seen) < 2:
        return seen.tolist()
    distance = torch.cdist(measures.class_mean[seen], measures.class_mean[seen])
    first, second = divmod(int(distance.argmax()), len(seen))
    return sorted(seen[[first, second]].tolist())


def mean_by_class(analysis: Analysis, depths: Sequence[str]) -> Drawn:
    """CondConv's figure 3: mean coefficient by class and expert at some depths."""
    figure = Figure(figsize=(2.6 * len(depths) + 1.4, min(2.2 + 0.2 * len(analysis.classes), 9)), layout="constrained")
    panels = figure.subplots(1, len(depths), squeeze=False, sharey=True)[0]
    top = coefficient_limit(measures.class_mean for measures in analysis.measures.values())
    for axes, name in zip(panels, depths, strict=True):
        means = analysis.measures[name].class_mean
        image = axes.imshow(means.numpy(), vmin=0, vmax=top, cmap=COLOUR_MAP, aspect="auto", interpolation="nearest")
        axes.set_title(plain(name, 28))
        label_experts(axes, means.shape[1])
    label_classes(panels[0], analysis.classes)
    figure.colorbar(image, ax=list(panels), label="mean coefficient")
    return Drawn(
        "mean_by_class",
        "Mean coefficient by class and expert",
        "One panel for each depth, from early to late (CondConv, figure 3). Equal rows: the routing does not depend on "
        "the class. Rows that differ: it does. Blank rows are classes without images.",
        figure,
        "mean_by_class.csv",
    )


def histogram(analysis: Analysis) -> Drawn:
    """CondConv's figure 4: how the coefficients are distributed, at every depth and at the last."""
    names = list(analysis.measures)
    parts = torch.stack([analysis.measures[name].histogram.mean(dim=0) for name in names])  # (R, bins)
    figure = Figure(figsize=(9.5, min(3.2 + 0.12 * len(names), 7)), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = (100 * parts.clamp(min=1e-5)).numpy()
    image = left.imshow(
        shown, aspect="auto", cmap=COLOUR_MAP, norm="log", vmin=0.01, vmax=100, extent=(0, 1, len(names) - 0.5, -0.5),
        interpolation="nearest",
    )  # fmt: skip
    label_depths(left, names, horizontal=False)
    left.set(xlabel="coefficient", title="every routing decision, first at the top")
    figure.colorbar(image, ax=left, label="% of the coefficients in a bin of 0.01", format="%g")
    coarse = (100 * parts[-1].reshape(-1, 2).sum(dim=1)).numpy()
    right.bar(np.arange(len(coarse)) / len(coarse), coarse, width=1 / len(coarse), align="edge", color=COLOURS[0])
    right.set(xlabel="coefficient", ylabel="% of the coefficients in a bin of 0.02", title=plain(names[-1], 28))
    right.set_xlim(0, 1)
    return Drawn(
        "histogram",
        "Distribution of the coefficients",
        "All coefficients of all images and experts (CondConv, figure 4). Mass at both ends is bimodal routing; mass "
        "near 0 alone is sparse routing; one hump in the middle is routing that has not made up its mind. The colours "
        "on the left are logarithmic.",
        figure,
        "histogram.csv",
    )


def class_profiles(analysis: Analysis, name: str, classes: Sequence[int], why: str) -> Drawn | None:
    """CondConv's figure 5: mean and spread of each expert's coefficient for some classes; None for no class."""
    if not classes:
        return None
    measures = analysis.measures[name]
    figure = Figure(figsize=(min(4 + 0.35 * measures.num_experts, 11), 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(classes))
    for place, label in enumerate(classes):
        x = np.arange(measures.num_experts) + (place - (len(classes) - 1) / 2) * width
        count = int(measures.class_count[label])
        axes.bar(
            x, measures.class_mean[label].numpy(), width, yerr=measures.class_std[label].numpy(), capsize=2,
            ecolor="#888888", color=COLOURS[place % len(COLOURS)],
            label=f"{plain(analysis.classes[label])} ({count:,} images)",
        )  # fmt: skip
    axes.set(ylabel="coefficient", title=plain(name))
    axes.set_ylim(bottom=0)
    label_experts(axes, measures.num_experts)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    return Drawn(
        "class_profiles",
        "Mean and spread for single classes",
        f"Mean coefficient of each expert over the images of a class, with one standard deviation (CondConv, "
        f"figure 5). {why}",
        figure,
        "mean_by_class.csv",
    )


def top_classes(analysis: Analysis, name: str, images: ImageAccess | None) -> Drawn | None:
    """CondConv's figure 6: the ten classes with the highest mean for some experts, with an image of each.

    None where no image has finite coefficients.
    """
    if not analysis.measures[name].images:
        return None
    means = analysis.measures[name].class_mean.nan_to_num(-torch.inf)
    # Experts that tell classes apart are the ones worth looking at.
    spread = analysis.measures[name].class_mean.nan_to_num().std(dim=0, correction=0)
    experts = sorted(spread.topk(min(SHOWN_EXPERTS, means.shape[1])).indices.tolist())
    columns = min(TOP_CLASSES, int((analysis.measures[name].class_count > 0).sum()))
    figure = Figure(figsize=(1.0 * columns + 1, 1.5 * len(experts)), layout="constrained")
    panels = figure.subplots(len(experts), columns, squeeze=False)
    for row, expert in zip(panels, experts, strict=True):
        best = means[:, expert].topk(columns)
        for axes, value, label in zip(row, best.values.tolist(), best.indices.tolist(), strict=True):
            _show_image(axes, images, int(analysis.collection.class_place[label]))
            axes.set_title(f"{plain(analysis.classes[label], 13)}\n{value:.2f}", fontsize=7)
        row[0].set_ylabel(f"expert {expert}")
    return Drawn(
        "top_classes",
        "The classes of an expert",
        f"The classes with the highest mean coefficient for {len(experts)} experts of {name} (CondConv, figure 6), "
        "each with one of its images, drawn at random, and its mean. The explorer has all experts of all layers.",
        figure,
        "top_classes.csv",
    )


def attention(analysis: Analysis) -> Drawn:
    """Dynamic Convolution's attention by block: how an image's mass is spread over its experts, by depth."""
    names = list(analysis.measures)
    ranks = max(analysis.measures[name].num_experts for name in names)
    figure = Figure(figsize=(min(4.5 + 0.25 * len(names), 11), 3.6), layout="constrained")
    axes = figure.subplots()
    bottom = np.zeros(len(names))
    colours = _sequence(ranks)
    for rank in range(ranks):
        shares = np.array(
            [float(m.rank_share[rank]) if rank < m.num_experts else 0.0 for m in analysis.measures.values()]
        )
        label = {0: "largest expert", 1: "second", ranks - 1: "smallest"}.get(rank)
        axes.bar(np.arange(len(names)), 100 * shares, bottom=bottom, color=colours[rank], label=label, width=0.85)
        bottom += 100 * shares
    axes.set(ylabel="mean % of an image's mass", ylim=(0, 100))
    label_depths(axes, names)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True)
    return Drawn(
        "attention",
        "Attention by depth",
        "An image's shares from the largest expert to the smallest, mean over the images. Equal parts: flat attention. "
        "One large part: sparse. Dynamic Convolution finds it flat in early layers and sparse in late ones.",
        figure,
        "attention.csv",
    )


def counterfactuals(analysis: Analysis) -> Drawn | None:
    """Accuracy with changed coefficients (Dynamic Convolution, section 5); None where it was not measured."""
    tried = analysis.collection.counterfactuals
    if INTACT not in tried:
        return None
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    names = list(tried)[::-1]
    values = [100 * tried[name].value for name in names]
    bars = axes.barh([_INTERVENTIONS.get(name, name) for name in names], values, color=COLOURS[0])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(100 / len(analysis.classes), color="#888888", linestyle="--", linewidth=1)
    axes.set(xlabel=f"accuracy / % of {tried[INTACT].images:,} images (dashed: chance)", xlim=(0, 105))
    return Drawn(
        "counterfactuals",
        "Accuracy with changed coefficients",
        "The same images with: every expert at the image's mean coefficient; its whole mass on its largest expert; the "
        "coefficients of another image of the batch; its own coefficients permuted among the experts (Dynamic "
        "Convolution, section 5). What costs nothing is not used by the network.",
        figure,
        "counterfactuals.csv",
    )


def _show_image(axes, images: ImageAccess | None, place: int) -> None:  # type: ignore[no-untyped-def]
    axes.set_xticks([])
    axes.set_yticks([])
    if images is not None and place >= 0:
        try:
            pixels = images.load(place).permute(1, 2, 0).squeeze(-1).numpy()
        except DataError:  # It was there during the pass: the panel stays empty, its class and mean are right.
            return
        axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None, vmin=0, vmax=255)


def _sequence(length: int) -> list[tuple[float, ...]]:
    """Colours from dark to light for ranks."""
    return [tuple(c) for c in matplotlib.colormaps[COLOUR_MAP](np.linspace(0.95, 0.05, length))]
