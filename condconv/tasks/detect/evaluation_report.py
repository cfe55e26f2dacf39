"""The folder of `condconv eval` for a detector: a summary, tables, precision against recall, confusion, mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from condconv.data import Source
from condconv.evaluation.evaluate import Evaluation
from condconv.files import whole_folder
from condconv.safe_text import visible, write_csv
from condconv.tasks.detect.average_precision import results_of
from condconv.tasks.detect.confusion import BACKGROUND, confusion
from condconv.tasks.detect.drawing import confusion_matrices, mistakes, precision_recall, worst
from condconv.tasks.detect.evaluator import Detected

SIZES = {"map_small": "small (below 32²)", "map_medium": "medium", "map_large": "large (from 96²)"}


def write_evaluation(out: str | Path, title: str, source: Source, evaluation: Evaluation[Detected]) -> Path:
    """Write the folder and return its path: `out`, or the first free `out-2`, `out-3`, … where that exists.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    found = evaluation.found
    with whole_folder(out) as folder:
        path = folder.path
        of_class = ((name, _number(value)) for name, value in zip(found.classes, found.precision.of_class, strict=True))
        write_csv(path / "classes.csv", ("class", "average_precision"), of_class)
        rows = (
            (source.val.where(place), len(truth.labels), mistakes(truth, detections))
            for place, truth, detections in zip(found.places, found.truths, found.detections, strict=True)
        )
        write_csv(path / "images.csv", ("image", "objects", "mistakes"), rows)
        (path / "detections.json").write_text(json.dumps(results_of(found.detections)), encoding="utf-8")
        (path / "precision_recall.png").write_bytes(precision_recall({title: found}))
        (path / "mistakes.png").write_bytes(worst(found, source.val.load))
        names = (*found.classes, BACKGROUND)
        counts = confusion(found.truths, found.detections, len(found.classes)).tolist()
        table = ([name, *row] for name, row in zip(names, counts, strict=True))
        write_csv(path / "confusion_matrix.csv", ("true \\ predicted", *names), table)
        (path / "confusion_matrix.png").write_bytes(confusion_matrices({title: found}))
        text = visible(_summary(title, source, evaluation))
        (path / "summary.md").write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder.path


def headline(found: Detected) -> str:
    """The numbers in one line."""
    numbers = found.precision.summary
    return (
        f"mAP {_percent(numbers['map'])}, at overlap 0.5 {_percent(numbers['map_50'])}, at 0.75 "
        f"{_percent(numbers['map_75'])}, {len(found.places):,} images"
    )


def table_by_class(found: Mapping[str, Detected]) -> str:
    """Average precision of each network by class and by size, in Markdown."""
    lines = [["", *found], [":---", *["---:"] * len(found)]]
    first = next(iter(found.values()))
    for label, name in enumerate(first.classes):
        lines.append([name, *(_percent(each.precision.of_class[label]) for each in found.values())])
    for column, name in SIZES.items():
        lines.append([name, *(_percent(each.precision.summary[column]) for each in found.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(title: str, source: Source, evaluation: Evaluation[Detected]) -> str:
    found = evaluation.found
    parts = [
        f"# {title} on {source.name}",
        f"{headline(found)}.",
        table_by_class({"average precision": found}),
        "![precision against recall](precision_recall.png)",
        "What objects are taken for, by overlap; background: none, or nothing there "
        "([confusion_matrix.csv](confusion_matrix.csv)):",
        "![confusion matrix](confusion_matrix.png)",
        "The images with the most mistakes, objects dashed, detections solid; [images.csv](images.csv) has all:",
        "![mistakes](mistakes.png)",
    ]
    return "\n\n".join([*parts, *evaluation.left_out(source)]) + "\n"


def _percent(value: float) -> str:
    return "–" if value < 0 else f"{100 * value:.2f} %"


def _number(value: float) -> str:
    return "" if value < 0 else f"{value:.6f}"
