"""Drawing with matplotlib for a page that is light or dark: SVG whose ink is the page's text colour.

Class names and file names are not trusted: they are never read as mathematics, and matplotlib escapes them in SVG.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

# Okabe and Ito's colours, which colour-blind readers can tell apart, those that show on white and on black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
COLOUR_MAP = "cividis"
MOST_LABELS = 40
_INK = "#010203"
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.framealpha": 0.0,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "text.parse_math": False,
}
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Drawn:
    """A figure: its name (also that of its file), title, caption, picture, and the table of its numbers."""

    name: str
    title: str
    caption: str
    figure: Figure
    table: str


def style() -> Any:
    """The context in which the figures of the report are drawn."""
    return matplotlib.rc_context(_STYLE)


def plain(text: str, longest: int = 40) -> str:
    """Return a name without characters that XML forbids, shortened in the middle."""
    text = _NOT_XML.sub("\ufffd", " ".join(text.split()))
    return text if len(text) <= longest else f"{text[: longest // 2 - 1]}…{text[-(longest // 2) :]}"


def to_svg(drawn: Drawn) -> str:
    """Return a figure as an SVG element whose ids differ from those of the page's other figures."""
    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({**_STYLE, "svg.hashsalt": drawn.name}):
        # Text stays text in the SVG: the reader's browser has glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Groups and images have names that repeat; nothing refers to them, and a page's ids must be unique.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' id="image[0-9a-f]+"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace(_INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def to_pixels(drawn: Drawn) -> np.ndarray:
    """Return a figure on white: uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), style():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn.figure.savefig(buffer, format="png", dpi=80, facecolor="white")
    return np.array(Image.open(buffer).convert("RGB"))


def nested(place: int, curves: int) -> dict[str, float]:
    """Return line width and marker size of one of several curves: the first is the widest, so that equal ones show."""
    behind = curves - 1 - place
    return {"linewidth": 1.4 + 1.2 * behind, "markersize": 4 + 2.5 * behind}


def coefficient_limit(means: Iterable[Tensor]) -> float:
    """Return where the colours of mean coefficients end: at the largest of any layer, in every picture of a network."""
    return max(1e-6, *(float(mean.nan_to_num().max()) for mean in means))


def label_depths(axes: Any, names: Sequence[str], horizontal: bool = True) -> None:
    """Write the names of routing decisions along an axis, thinned where there are too many."""
    step = -(-len(names) // 30)
    ticks = list(range(0, len(names), step))
    labels = [plain(names[i], 24) for i in ticks]
    if horizontal:
        axes.set_xticks(ticks, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    else:
        axes.set_yticks(ticks, labels, fontsize=7)


def label_classes(axes: Any, classes: Sequence[str]) -> None:
    """Write class names along the vertical axis, where there is room for all of them."""
    if len(classes) <= MOST_LABELS:
        axes.set_yticks(range(len(classes)), [plain(name, 24) for name in classes], fontsize=8)
    axes.set_ylabel("class" if len(classes) <= MOST_LABELS else "class, by index")


def label_experts(axes: Any, experts: int) -> None:
    """Write the experts' numbers along the horizontal axis."""
    axes.set_xticks(range(0, experts, -(-experts // 16)))
    axes.set_xlabel("expert")
