"""The folder of `condconv eval` for images with several classes: a summary, and a table by class as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from condconv.data import Source
from condconv.evaluation.evaluate import Evaluation
from condconv.files import whole_folder
from condconv.safe_text import visible, write_csv
from condconv.tasks.multilabel.evaluator import Tagged


def write_evaluation(out: str | Path, title: str, source: Source, evaluation: Evaluation[Tagged]) -> Path:
    """Write the folder and return its path: `out`, or the first free `out-2`, `out-3`, … where that exists.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    found = evaluation.found
    with whole_folder(out) as folder:
        write_csv(folder.path / "classes.csv", ("class", "images", "average_precision", "f1"), _rows(found))
        parts = [
            f"# {title} on {source.name}", f"{headline(found)}, {len(source.classes)} classes.",
            table_by_class({"average precision": found}),
            "[classes.csv](classes.csv) has F1 at probability 0.5 too.", *evaluation.left_out(source),
        ]  # fmt: skip
        text = visible("\n\n".join(parts) + "\n")
        (folder.path / "summary.md").write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder.path


def _rows(found: Tagged) -> Iterator[tuple[str, int, str, str]]:
    columns = (column.tolist() for column in (found.having, found.precision, found.f1))
    for name, having, precision, f1 in zip(found.classes, *columns, strict=True):
        yield (name, having, f"{precision:.6f}", f"{f1:.6f}") if having else (name, having, "", "")


def headline(found: Tagged) -> str:
    """The numbers in one line."""
    f1 = f"mean F1 at probability 0.5 {100 * found.mean_f1:.2f} %"
    return f"mAP {100 * found.score:.2f} %, {f1}, {found.images:,} images"


def table_by_class(found: Mapping[str, Tagged]) -> str:
    """Images and average precision by class, a column for each network, in Markdown; dashes where a class has none."""
    first = next(iter(found.values()))
    lines = [["class", "images", *found], [":---", "---:", *["---:"] * len(found)]]
    for label, name in enumerate(first.classes):
        having = int(first.having[label])
        values = (f"{100 * float(each.precision[label]):.2f} %" if having else "–" for each in found.values())
        lines.append([name, str(having), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
