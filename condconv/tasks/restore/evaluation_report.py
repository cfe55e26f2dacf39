"""The folder of `condconv eval` for a restorer: a summary, tables as CSV, pictures before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from condconv.data import Source
from condconv.evaluation.evaluate import Evaluation
from condconv.files import whole_folder
from condconv.safe_text import visible, write_csv
from condconv.tasks.restore.drawing import before_after, quality_by_strength
from condconv.tasks.restore.evaluator import Restored

_COLUMNS = ("psnr_before", "psnr", "ssim_before", "ssim")


def write_evaluation(out: str | Path, title: str, source: Source, evaluation: Evaluation[Restored]) -> Path:
    """Write the folder and return its path: `out`, or the first free `out-2`, `out-3`, … where that exists.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    found = evaluation.found
    with whole_folder(out) as folder:
        path = folder.path
        write_csv(path / "strengths.csv", ("degradation", "images", *_COLUMNS), _group_rows(found))
        rows = (
            (
                source.val.where(each.place), found.groups[each.group].split()[0], f"{each.strength:.3f}",
                *(f"{getattr(each, column):.4f}" for column in _COLUMNS),
            )
            for each in found.pictures
        )  # fmt: skip
        write_csv(path / "images.csv", ("image", "degradation", "strength", *_COLUMNS), rows)
        (path / "before_after.png").write_bytes(before_after({title: found}))
        (path / "psnr_by_strength.png").write_bytes(quality_by_strength({title: found}))
        text = visible(_summary(title, source, evaluation))
        (path / "summary.md").write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder.path


def headline(found: Restored) -> str:
    """The numbers in one line."""
    return (
        f"PSNR {found.score:.2f} dB (degraded: {found.mean('psnr_before'):.2f}), SSIM {found.mean('ssim'):.4f} "
        f"(degraded: {found.mean('ssim_before'):.4f}), {len(found.pictures):,} pictures"
    )


def table_by_strength(found: Mapping[str, Restored]) -> str:
    """PSNR and SSIM of each network by degradation and strength, in Markdown."""
    first = next(iter(found.values()))
    head = ["degradation", "pictures", "degraded", *found]
    lines = [head, [":---", *["---:"] * (len(head) - 1)]]
    for group in [g for g in range(len(first.groups)) if first.of_group(g)]:
        before = f"{first.mean('psnr_before', group):.2f} dB, {first.mean('ssim_before', group):.3f}"
        after = [f"{each.mean('psnr', group):.2f} dB, {each.mean('ssim', group):.3f}" for each in found.values()]
        lines.append([first.groups[group], f"{first.of_group(group):,}", before, *after])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(title: str, source: Source, evaluation: Evaluation[Restored]) -> str:
    found = evaluation.found
    parts = [
        f"# {title} on {source.name}",
        f"{headline(found)}.",
        "PSNR and SSIM by strength; [strengths.csv](strengths.csv) and, picture by picture, [images.csv](images.csv) "
        "have them too:",
        table_by_strength({"restored": found}),
        "![PSNR by strength](psnr_by_strength.png)",
        "![before and after](before_after.png)",
    ]
    return "\n\n".join([*parts, *evaluation.left_out(source, "cannot be used")]) + "\n"


def _group_rows(found: Restored) -> Iterator[tuple[str, ...]]:
    for group, name in enumerate(found.groups):
        values = (found.mean(column, group) for column in _COLUMNS)
        count = found.of_group(group)
        yield name, str(count), *(f"{value:.4f}" if count else "" for value in values)
