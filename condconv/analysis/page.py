"""The report as one HTML file: no server, no outside resources, and nothing in it that was not escaped.

The template escapes whatever is no `Markup`: figures, style and script are. The page forbids by its own policy
(Content-Security-Policy) to load anything, and to run any script but the explorer, which it names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from condconv.analysis.advice import Advice
from condconv.analysis.collect import MOST_COEFFICIENTS
from condconv.analysis.drawing import Drawn
from condconv.analysis.measures import DEFINITIONS, Measures
from condconv.analysis.results import Analysis, ImageAccess
from condconv.routing_hooks import interventions

_NUMBERS: dict[str, Callable[[Measures], str]] = {
    "experts": lambda m: str(m.num_experts),
    "images": lambda m: f"{m.images:,}",
    "entropy": lambda m: _text(m.entropy),
    "effective experts": lambda m: _text(m.effective_experts),
    "overall": lambda m: _text(m.effective_overall),
    "mutual information / bit": lambda m: _text(m.mutual_information, 3),
    "class information": lambda m: _text(m.class_information, 3),
    "variance between classes": lambda m: _text(m.variance_between, 3),
    "spread": lambda m: _text(m.spread, 3),
    "near 0": lambda m: _text(m.near_zero),
    "near 1": lambda m: _text(m.near_one),
    "top-1 mass": lambda m: _text(float(m.top_k_mass[0])),
    "dead": lambda m: str(len(m.dead)),
    "always on": lambda m: str(len(m.always_on)),
    "coefficient similarity": lambda m: _text(m.coefficient_similarity),
}  # fmt: skip


def render(
    analysis: Analysis,
    figures: Sequence[Drawn],
    pictures: Mapping[str, str],
    advice: Sequence[Advice],
    explorer: Mapping[str, Any],
    tables: Sequence[str],
    images: ImageAccess | None,
    footer: str,
) -> str:
    """Return the page; `pictures` are the figures as SVG, by name."""
    script = _part("explorer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages = Environment(loader=PackageLoader("condconv.analysis", "assets"), autoescape=True, undefined=StrictUndefined)
    # No \u… for letters: those that turn others round are written out in the whole page at the end.
    pages.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return pages.get_template("report.html").render(
        script_hash=f"sha256-{digest}",
        title=f"Routing of {analysis.title}",
        subtitle=f"on {analysis.data}",
        style=_part("report.css"),
        cards=_cards(analysis),
        problems=problem_lines(analysis, images),
        advice=advice,
        figures=[(drawn, Markup(pictures[drawn.name])) for drawn in figures],
        columns=["layer", *_NUMBERS, "weight similarity"],
        rows=_rows(analysis),
        tables=tables,
        definitions=DEFINITIONS,
        footer=footer,
        explorer=explorer,
        script=script,
    )


def _part(name: str) -> Markup:
    return Markup((resources.files("condconv.analysis") / "assets" / name).read_text(encoding="utf-8"))


def _text(value: float, digits: int = 2) -> str:
    return "–" if value != value else f"{value:.{digits}f}"


def _cards(analysis: Analysis) -> dict[str, str]:
    collection = analysis.collection
    layers = sum(len(group.layers) for group in analysis.groups)
    first, last = (list(analysis.measures.values())[i] for i in (0, -1))
    cards = {
        "images": f"{max(m.images for m in analysis.measures.values()):,}",
        "classes": f"{len(analysis.classes) - len(analysis.missing_classes)} of {len(analysis.classes)} seen",
        "conditional layers": f"{layers}, {len(analysis.groups)} routing decisions",
        "class information, first → last": f"{_text(first.class_information, 3)} → {_text(last.class_information, 3)}",
        "entropy, first → last": f"{_text(first.entropy)} → {_text(last.entropy)}",
        "coefficients near 0 / near 1, last": f"{_text(last.near_zero)} / {_text(last.near_one)}",
    }
    if collection.accuracy.images:
        cards["accuracy"] = f"{100 * collection.accuracy.value:.2f} %"
    return cards


def problem_lines(analysis: Analysis, images: ImageAccess | None) -> list[str]:
    """Return what was wrong with data and routing, counted, the first few by name; empty where nothing was."""
    problems = analysis.collection.problems

    def names(places: Sequence[int], total: int) -> str:
        shown = [images.where(place) if images else f"image {place}" for place in places]
        return ", ".join([*shown, *(["…"] if total > len(shown) else [])])

    lines = []
    if problems.undecodable:
        named = names(problems.undecodable_images, problems.undecodable)
        lines.append(f"{problems.undecodable} images could not be decoded and were left out: {named}.")
    if analysis.skipped:
        shown = "; ".join(analysis.skipped[:20])
        lines.append(f"{len(analysis.skipped)} samples were left out when the data was opened: {shown}.")
    if problems.unlabelled:
        lines.append(f"{problems.unlabelled} images without a label in 0 … {len(analysis.classes) - 1} were left out.")
    if missing := analysis.missing_classes:
        shown = ", ".join([*missing[:20], *(["…"] if len(missing) > 20 else [])])
        lines.append(f"{len(missing)} of {len(analysis.classes)} classes have no image here, so no mean: {shown}.")
    for layer, count in problems.nonfinite.items():
        named = names(problems.nonfinite_images, count)
        lines.append(
            f"{layer}: coefficients that are not finite in {count} images, left out of its numbers ({named}). "
            "Look with condconv.detect_nonfinite."
        )
    if problems.never_ran:
        lines.append(f"{len(problems.never_ran)} conditional layers never ran: {', '.join(problems.never_ran[:20])}.")
    if problems.too_long:
        shown = ", ".join([*problems.too_long[:20], *(["…"] if len(problems.too_long) > 20 else [])])
        lines.append(f"Routing decisions of more than {MOST_COEFFICIENTS} coefficients were left out: {shown}.")
    for name, m in analysis.measures.items():
        if m.outside:
            lines.append(f"{name}: {m.outside:,} coefficients outside [0, 1]; histograms put them into the outer bins.")
    if max(m.images for m in analysis.measures.values()) == 1:
        lines.append("Only one image: standard deviations are 0, and nothing can be said of classes or similarity.")
    if not analysis.collection.accuracy.images:
        lines.append(
            f"The network does not answer with one score for each of the {len(analysis.classes)} classes, so there is "
            "no accuracy, nor what it loses with changed coefficients."
        )
    elif not analysis.collection.counterfactuals:
        lines.append(f"Changed coefficients ({', '.join(interventions)}) were not tried.")
    return lines


def _rows(analysis: Analysis) -> list[list[str]]:
    """The cells of the table of numbers, a row for each routing decision."""
    rows = []
    for group in analysis.groups:
        numbers = (cell(analysis.measures[group.name]) for cell in _NUMBERS.values())
        rows.append([group.name, *numbers, _text(analysis.group_weight_similarity(group))])
    return rows
