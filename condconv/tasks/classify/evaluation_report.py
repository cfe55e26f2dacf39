"""The folder of `condconv eval`: a summary, tables as CSV, the confusion matrix and the worst mistakes as pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from condconv.data import Source
from condconv.evaluation.evaluate import Evaluation
from condconv.evaluation.figures import confusion_matrix, drawable
from condconv.files import whole_folder
from condconv.safe_text import visible, write_csv
from condconv.tasks.classify.evaluator import TOP, Classified

_COLUMNS = 5
_MOST_LISTED = 20


def write_evaluation(out: str | Path, title: str, source: Source, evaluation: Evaluation[Classified]) -> Path:
    """Write the folder and return its path: `out`, or the first free `out-2`, `out-3`, … where that exists.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    names, found = source.classes, evaluation.found
    with whole_folder(out) as folder:
        path = folder.path
        write_csv(path / "classes.csv", ("class", "images", "right", "accuracy"), _class_rows(names, found))
        rows = zip(names, found.confusion.tolist(), strict=True)
        write_csv(path / "confusion_matrix.csv", ("true \\ predicted", *names), ([name, *row] for name, row in rows))
        mistakes = [
            (source.val.where(m.place), names[m.true], names[m.predicted], f"{m.confidence:.6f}")
            for m in found.mistakes
        ]
        write_csv(path / "mistakes.csv", ("image", "true", "predicted", "confidence"), mistakes)
        matrix = confusion_matrix({f"{title}: {100 * found.score:.2f} %": found.confusion}, names)
        (path / "confusion_matrix.png").write_bytes(matrix)
        if found.mistakes:
            (path / "mistakes.png").write_bytes(image_sheet(source, found))
        text = visible(_summary(title, source, evaluation))
        (path / "summary.md").write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder.path


def image_sheet(source: Source, found: Classified) -> bytes:
    """The surest mistakes as pictures, each with its true class, the predicted one and the confidence; a PNG."""
    rows = -(-len(found.mistakes) // _COLUMNS)
    figure = Figure(figsize=(2.2 * _COLUMNS, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, mistake in zip(panels, found.mistakes, strict=False):
        image = source.val.load(mistake.place)
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        true, predicted = (_plain(source.classes[label]) for label in (mistake.true, mistake.predicted))
        axes.set_title(f"{true}\n→ {predicted}, {100 * mistake.confidence:.1f} %", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def headline(found: Classified) -> str:
    """The numbers in one line."""
    of_several = f"top-{min(TOP, len(found.confusion))}"
    return f"top-1 {100 * found.top1:.2f} %, {of_several} {100 * found.top5:.2f} %, {found.images:,} images"


def _summary(title: str, source: Source, evaluation: Evaluation[Classified]) -> str:
    found = evaluation.found
    rows = [row for row in _class_rows(source.classes, found) if row[1]]
    worst = sorted(rows, key=lambda row: float(row[3]))[:_MOST_LISTED]
    table = [f"| {name} | {images} | {100 * float(accuracy):.2f} |" for name, images, _, accuracy in worst]
    parts = [
        f"# {title} on {source.name}",
        f"{headline(found)}, {len(source.classes)} classes.",
        f"Classes, the worst first{'' if len(worst) == len(rows) else f' ({len(worst)} of {len(rows)})'}; "
        "[classes.csv](classes.csv) has all of them:",
        "\n".join(["| class | images | accuracy / % |", "| --- | --- | --- |", *table]),
        "Which class is taken for which: [confusion_matrix.csv](confusion_matrix.csv).",
        "![confusion matrix](confusion_matrix.png)",
    ]
    if found.mistakes:
        parts += ["The surest mistakes: [mistakes.csv](mistakes.csv).", "![mistakes](mistakes.png)"]
    return "\n\n".join([*parts, *evaluation.left_out(source)]) + "\n"


def _class_rows(names: Sequence[str], found: Classified) -> list[tuple[str, int, int, str]]:
    """Of each class: name, images, those that are right, accuracy ("" without images)."""
    columns = (found.confusion.sum(dim=1), found.confusion.diag(), found.of_class)
    return [
        (name, images, right, f"{accuracy:.6f}" if images else "")
        for name, images, right, accuracy in zip(names, *(column.tolist() for column in columns), strict=True)
    ]


def _plain(name: str) -> str:
    """A class name that can be drawn, and that fits above a picture."""
    short = name if len(name) <= 24 else f"{name[:23]}…"
    return drawable(short)
