"""The picture of a confusion matrix. Drawn with matplotlib's object interface: no window, no global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

_MOST_LABELS = 40


def confusion_matrix(confusions: Mapping[str, Tensor], classes: Sequence[str]) -> bytes:
    """One panel for each title: rows true, columns predicted, each row in % of its examples; a PNG."""
    size = min(4.5 + 0.25 * len(classes), 14)
    figure = Figure(figsize=(size * len(confusions), size), layout="constrained")
    panels = figure.subplots(1, len(confusions), squeeze=False)[0]
    for axes, (title, confusion) in zip(panels, confusions.items(), strict=True):
        percent = 100 * confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
        image = axes.imshow(percent.numpy(), vmin=0, vmax=100, cmap="cividis")
        axes.set(xlabel="predicted class", ylabel="true class", title=title)
        name_classes(axes, classes, both=True)
        if len(classes) <= 12:
            for (row, column), value in zip(torch.cartesian_prod(*map(torch.arange, percent.shape)).tolist(),
                                            percent.flatten().tolist(), strict=True):  # fmt: skip
                if value >= 0.5:
                    colour = "black" if value > 50 else "white"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class")
    return png(figure)


def name_classes(axes: Any, classes: Sequence[str], both: bool) -> None:
    """Name the classes at the axes, where there is room for it."""
    if len(classes) > _MOST_LABELS:
        return
    names = [drawable(name) for name in classes]
    axes.set_yticks(range(len(names)), names)
    if both:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")


def drawable(name: str) -> str:
    """A class name as it can be drawn: "$" would be read as mathematics; letters that the font lacks get a number."""
    font = get_font(findfont(FontProperties()))
    letters = (letter if font.get_char_index(ord(letter)) else f"<U+{ord(letter):04X}>" for letter in name)
    return "".join(letters).replace("$", r"\$")


def sheet(pictures: int, height: float) -> tuple[Figure, list[Any]]:
    """A figure of pictures, three in a row, and the axes of each; `height` of one in inches."""
    columns = min(3, max(1, pictures))
    rows = max(1, -(-pictures // columns))
    figure = Figure(figsize=(4.2 * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels:
        axes.axis("off")
    return figure, panels


def one_picture(image: Tensor) -> tuple[Figure, Any]:
    """A figure as large as an image, uint8 (C, H, W), which it shows, and its axes."""
    height, width = image.shape[1:]
    figure = Figure(figsize=(max(3.0, width / 100), max(3.0, height / 100)), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    show(axes, image)
    return figure, axes


def show(axes: Any, image: Tensor) -> None:
    """Show an image, uint8 (C, H, W); what is drawn outside of it does not shrink it."""
    axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
    axes.autoscale(False)


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
