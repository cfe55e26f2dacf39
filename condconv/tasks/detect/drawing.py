"""The pictures of detection: boxes on images, precision against recall, confusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.ops import box_iou

from condconv.analysis.drawing import COLOURS
from condconv.detection import Detections
from condconv.evaluation import figures
from condconv.tasks.detect.confusion import BACKGROUND, SAME_OBJECT, confusion, shown
from condconv.tasks.detect.evaluator import Detected
from condconv.tasks.detect.objects import Objects

IMAGES = 6


def precision_recall(found: Mapping[str, Detected]) -> bytes:
    """Precision against recall at overlap 0.5, a panel for each network, a line for each class; a PNG."""
    figure = Figure(figsize=(5 * len(found), 4.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (network, each) in zip(panels, found.items(), strict=True):
        for label, name in enumerate(each.classes):
            curve = each.precision.curves[:, label]
            if (curve > -1).any():
                colour = COLOURS[label % len(COLOURS)]
                axes.plot(np.linspace(0, 1, len(curve)), curve, color=colour, label=name.replace("$", r"\$"))
        title = f"{network}: mAP {100 * each.score:.1f} %"
        axes.set(xlabel="recall", ylabel="precision, overlap 0.5", title=title, xlim=(0, 1), ylim=(0, 1.03))
        axes.grid(alpha=0.3)
        if len(each.classes) <= 12 and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return figures.png(figure)


def confusion_matrices(found: Mapping[str, Detected]) -> bytes:
    """Which class objects are taken for, a panel for each network; a PNG."""
    counts = {network: confusion(each.truths, each.detections, len(each.classes)) for network, each in found.items()}
    classes = next(iter(found.values())).classes
    return figures.confusion_matrix(counts, (*classes, BACKGROUND))


def worst(found: Detected, load: Callable[[int], Tensor]) -> bytes:
    """The images with the most mistakes, each with its objects (dashed) and its detections (solid); a PNG."""
    order = sorted(range(len(found.places)), key=lambda i: mistakes(found.truths[i], found.detections[i]), reverse=True)
    chosen = order[:IMAGES]
    figure, panels = figures.sheet(len(chosen), 3.6)
    for axes, index in zip(panels, chosen, strict=False):
        figures.show(axes, load(found.places[index]))
        truth, detections = found.truths[index], shown(found.detections[index])
        _boxes(axes, truth.boxes, truth.labels, "--")
        _boxes(axes, detections.boxes, detections.labels, "-")
        axes.set_title(f"{mistakes(truth, found.detections[index])} mistakes", fontsize=8)
    return figures.png(figure)


def with_boxes(image: Tensor, detections: Detections, classes: Sequence[str]) -> bytes:
    """One image, uint8 (C, H, W), with its detections, their classes and scores; a PNG."""
    figure, axes = figures.one_picture(image)
    kept = shown(detections)
    _boxes(axes, kept.boxes, kept.labels, "-")
    for box, score, label in zip(*(part.tolist() for part in kept), strict=True):
        name = classes[label - 1].replace("$", r"\$")
        colour = COLOURS[(label - 1) % len(COLOURS)]
        axes.text(box[0], box[1], f"{name} {score:.2f}", color=colour, fontsize=7, va="bottom")
    return figures.png(figure)


def mistakes(truth: Objects, detections: Detections) -> int:
    """Objects without a detection of their class, and detections without an object of theirs."""
    truth, detections = truth.kept(~truth.crowd), shown(detections)
    if not len(truth.boxes) or not len(detections.boxes):
        return len(truth.boxes) + len(detections.boxes)
    same = (box_iou(truth.boxes, detections.boxes) >= SAME_OBJECT) & (truth.labels[:, None] == detections.labels)
    return int((~same.any(dim=1)).sum() + (~same.any(dim=0)).sum())


def _boxes(axes, boxes: Tensor, labels: Tensor, style: str) -> None:  # type: ignore[no-untyped-def]
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        colour = COLOURS[(label - 1) % len(COLOURS)]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=style))
