"""Curves: each number of a routing decision over depth, and recorded training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from condconv.analysis.drawing import COLOURS, Drawn, label_depths, nested, plain
from condconv.analysis.measures import Measures
from condconv.analysis.results import Analysis

_MARKERS = "os^Dvp"

MEASURED = ("epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "temperature")
"""What is recorded of an epoch."""


@dataclass(frozen=True)
class RecordedNetwork:
    """One network of a recorded run.

    `macs` are the multiply-adds of one image; `epochs` has `MEASURED` for each epoch (temperature NaN where there is
    none).
    """

    run: str
    network: str
    macs: int
    epochs: Sequence[Mapping[str, float]]

    @property
    def label(self) -> str:
        """Run, network, and how its temperature went."""
        temperatures = [row["temperature"] for row in self.epochs if not math.isnan(row["temperature"])]
        name = f"{self.run}: {self.network}"
        if not temperatures:
            return name
        first, last = temperatures[0], temperatures[-1]
        return f"{name}, T = {first:.3g}" if first == last else f"{name}, T annealed to {last:.3g}"


def depth_curves(analysis: Analysis) -> Drawn:
    """Every measure over depth."""
    names = list(analysis.measures)
    figure = Figure(figsize=(10.5, 6.8), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    m = list(analysis.measures.values())
    weights = [analysis.group_weight_similarity(group) for group in analysis.groups]
    curves: list[tuple[str, str, tuple[float, float] | None, dict[str, Sequence[float]]]] = [
        ("Entropy", "normalised entropy (1 = flat)", (0, 1.03), {"entropy": [x.entropy for x in m]}),
        (
            "Effective number of experts",
            "experts",
            (0, 1.03 * max(x.num_experts for x in m)),
            {"of an image": [x.effective_experts for x in m], "over all images": [x.effective_overall for x in m]},
        ),
        (
            "How class-specific",
            "part (0 … 1)",
            (-0.03, 1.03),
            {
                "class information": [x.class_information for x in m],
                "variance between classes": [x.variance_between for x in m],
            },
        ),
        (
            "Dead and always-on experts",
            "% of the experts",
            (-3, 103),
            {
                "dead": [100 * len(x.dead) / x.num_experts for x in m],
                "always on": [100 * len(x.always_on) / x.num_experts for x in m],
            },
        ),
        (
            "Similarity of experts",
            "mean over pairs (-1 … 1)",
            None,
            {"kernels (cosine)": weights, "coefficients (correlation)": [x.coefficient_similarity for x in m]},
        ),
        ("Mass kept by the k largest", "% of an image's mass", (0, 103), _masses(m)),
    ]
    for axes, (title, unit, limits, lines) in zip(panels.flat, curves, strict=True):
        for place, (label, values) in enumerate(lines.items()):
            style = {"color": COLOURS[place % len(COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}
            axes.plot(range(len(names)), values, label=label, **style, **nested(place, len(lines)))
        axes.set(title=title, ylabel=unit)
        if limits is not None:
            axes.set_ylim(limits)
        axes.grid(alpha=0.25)
        if len(lines) > 1:
            axes.legend(fontsize=7)
    for axes in panels[1]:
        label_depths(axes, names)
    return Drawn(
        "depth",
        "Over depth",
        "Each number by routing decision, from the first to the last; their definitions are at the end of the page.",
        figure,
        "depth.csv",
    )


def _masses(measures: Sequence[Measures]) -> dict[str, Sequence[float]]:
    most = max(m.num_experts for m in measures)
    return {
        f"k = {k}": [100 * float(m.top_k_mass[min(k, m.num_experts) - 1]) for m in measures]
        for k in (1, 2, 4, 8)
        if k < most or k == 1
    }


def accuracy_against_macs(networks: Sequence[RecordedNetwork]) -> Drawn:
    """Final validation accuracy of recorded networks against their multiply-adds (Dynamic Convolution, figure 1)."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for place, network in enumerate(networks):
        accuracy = 100 * network.epochs[-1]["val_accuracy"]
        axes.plot(
            network.macs / 1e6, accuracy, _MARKERS[place % len(_MARKERS)], color=COLOURS[place % len(COLOURS)],
            label=plain(network.label, 60),
        )  # fmt: skip
    axes.set(xlabel="multiply-adds of one image / 10⁶", ylabel="validation accuracy after the last epoch / %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    return Drawn(
        "runs_accuracy",
        "Accuracy against multiply-adds",
        "Recorded runs, a point for each network. Multiply-adds by the papers' convention, with mixing and routing.",
        figure,
        "runs.csv",
    )


def training_curves(networks: Sequence[RecordedNetwork]) -> Drawn:
    """Loss and accuracy over the epochs of recorded networks (Dynamic Convolution, figure 4)."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for place, network in enumerate(networks):
        colour = COLOURS[place % len(COLOURS)]
        epochs = [row["epoch"] for row in network.epochs]
        for axes, quantity, scale in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
            for half, line in (("train", "--"), ("val", "-")):
                values = scale * np.array([row[f"{half}_{quantity}"] for row in network.epochs])
                label = plain(network.label, 60) if half == "val" and quantity == "loss" else None
                axes.plot(epochs, values, line, color=colour, label=label, marker="." if len(epochs) < 3 else None)
    panels[0].set(xlabel="epoch", ylabel="cross-entropy (dashed: training, with label smoothing)")
    panels[1].set(xlabel="epoch", ylabel="accuracy / % (dashed: training)")
    for axes in panels:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    figure.legend(fontsize=7, loc="outside lower center", frameon=False)
    return Drawn(
        "runs_curves",
        "Training curves",
        "Recorded runs; T is the temperature of the softmax gates. Dynamic Convolution finds that 1 from the start "
        "trains worst, and 30 annealed to 1 best.",
        figure,
        "runs.csv",
    )
