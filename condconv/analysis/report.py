"""The report folder: report.html, each figure as SVG, each figure's numbers as CSV. Whole or not there at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from condconv.analysis import curves, figures
from condconv.analysis.advice import advise
from condconv.analysis.curves import RecordedNetwork
from condconv.analysis.drawing import Drawn, style, to_svg
from condconv.analysis.explorer import explorer_data
from condconv.analysis.page import render
from condconv.analysis.results import Analysis, ImageAccess
from condconv.analysis.tables import write_tables
from condconv.files import whole_folder
from condconv.safe_text import visible

PAGE = "report.html"


def write_report(
    out: str | Path,
    analysis: Analysis,
    *,
    images: ImageAccess | None = None,
    runs: Sequence[RecordedNetwork] = (),
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    replace: bool = False,
) -> Path:
    """Write the report and return its folder: `out`, or the first free `out-2`, `out-3`, … where that exists.

    Args:
        out: the folder to make.
        analysis: what `summarise` returned.
        images: how to get at images by place; None for a report without pictures of them.
        runs: recorded networks, for accuracy against multiply-adds and training curves.
        layers: the depths of the figure by class and expert, and the last of them for the figures about one depth;
            four evenly spread ones, and the last of all, where None.
        classes: the classes of the figure about single classes; the two that differ most where None.
        replace: a folder that is there already is replaced.

    Raises:
        UnknownNameError: no such layer or class.
        ArgumentError: the folder cannot be written.
    """
    drawn = draw(analysis, images, runs, layers, classes)
    with whole_folder(out, replace=replace) as folder:
        tables = write_tables(folder.path, analysis, runs)
        pictures = {figure.name: visible(to_svg(figure)) for figure in drawn}
        for name, svg in pictures.items():
            (folder.path / f"{name}.svg").write_text(svg, encoding="utf-8", errors="surrogateescape")
        footer = f"Made by condconv analyze; torch {torch.__version__}. One file: it loads nothing from elsewhere."
        explorer = explorer_data(analysis, images)
        page = render(analysis, drawn, pictures, advise(analysis), explorer, tables, images, footer)
        # Lone surrogates, as file names with undecodable bytes have, are no text.
        (folder.path / PAGE).write_text(visible(page), encoding="utf-8", errors="replace")
    return folder.path


def draw(
    analysis: Analysis,
    images: ImageAccess | None,
    runs: Sequence[RecordedNetwork] = (),
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> list[Drawn]:
    """Draw all figures that there are numbers for. See `write_report` for arguments and errors."""
    depths = figures.even_depths(analysis) if layers is None else figures.resolve_layers(analysis.groups, layers)
    last = depths[-1]
    if classes is None:
        labels = figures.most_different_classes(analysis.measures[last])
        why = "Shown are the two classes whose means differ most."
    else:
        labels, why = figures.resolve_classes(analysis.classes, classes), ""
    with style():
        drawn = [
            figures.mean_by_class(analysis, depths),
            figures.histogram(analysis),
            figures.class_profiles(analysis, last, labels, why),
            figures.top_classes(analysis, last, images),
            figures.attention(analysis),
            figures.counterfactuals(analysis),
            curves.depth_curves(analysis),
        ]
        if len(runs) > 1:
            drawn.append(curves.accuracy_against_macs(runs))
        if runs:
            drawn.append(curves.training_curves(runs))
    return [figure for figure in drawn if figure is not None]
