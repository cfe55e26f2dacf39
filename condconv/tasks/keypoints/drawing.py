"""The pictures of keypoints: joints on images, distances by joint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from condconv.analysis.drawing import COLOURS
from condconv.evaluation import figures
from condconv.tasks.keypoints.evaluator import Located

SHOWN_SCORE = 0.2
"""Joints that are drawn in predictions."""
IMAGES = 6


def distances_by_joint(found: Mapping[str, Located]) -> bytes:
    """Median distance in pixels, a bar for each joint and network; a PNG."""
    first = next(iter(found.values()))
    figure = Figure(figsize=(max(6.0, 0.45 * len(first.names)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(found)
    for number, (network, each) in enumerate(found.items()):
        medians = [float(np.nanmedian(column)) if not np.isnan(column).all() else 0.0 for column in each.distance.T]
        colour = COLOURS[number % len(COLOURS)]
        axes.bar(np.arange(len(medians)) + number * width, medians, width, label=network, color=colour)
    names = [name.replace("$", r"\$") for name in first.names]
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=60, ha="right")
    axes.set(ylabel="median distance, pixels")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small")
    return figures.png(figure)


def worst(found: Located, load: Callable[[int], Tensor]) -> bytes:
    """The instances with the largest mean distance; circles: the joints, crosses: where they were found; a PNG."""
    order = np.argsort(-np.nanmean(found.relative, axis=1))[:IMAGES]
    figure, panels = figures.sheet(len(order), 3.8)
    for axes, place in zip(panels, order.tolist(), strict=False):
        figures.show(axes, load(found.places[place]))
        truth = found.instances[place].joints
        _points(axes, truth[truth[:, 2] > 0].tolist(), [k for k in range(len(truth)) if truth[k, 2] > 0], "o")
        _points(axes, found.joints[place].tolist(), range(len(truth)), "x")
        axes.set_title(f"mean distance {np.nanmean(found.distance[place]):.1f} pixels", fontsize=8)
    return figures.png(figure)


def with_joints(image: Tensor, joints: Tensor, names: Sequence[str]) -> bytes:
    """One image, uint8 (C, H, W), with the joints (K, 3) that are sure enough, and their names; a PNG."""
    figure, axes = figures.one_picture(image)
    for k, (x, y, score) in enumerate(joints.tolist()):
        if score >= SHOWN_SCORE:
            _points(axes, [(x, y)], [k], "x")
            axes.text(x, y, names[k].replace("$", r"\$"), color=COLOURS[k % len(COLOURS)], fontsize=6, va="bottom")
    return figures.png(figure)


def _points(axes: Any, points: Sequence[Sequence[float]], joints: Sequence[int], marker: str) -> None:
    for (x, y, *_), k in zip(points, joints, strict=True):
        axes.plot(x, y, marker, color=COLOURS[k % len(COLOURS)], markersize=5, fillstyle="none")
