"""The folder of `condconv eval` for keypoints: a summary, tables as CSV, distances by joint, the worst instances."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from condconv.data import Source
from condconv.evaluation.evaluate import Evaluation
from condconv.files import whole_folder
from condconv.safe_text import visible, write_csv
from condconv.tasks.keypoints.drawing import distances_by_joint, worst
from condconv.tasks.keypoints.evaluator import Located
from condconv.tasks.keypoints.scores import PCK_SHARE, pck, results_of


def write_evaluation(out: str | Path, title: str, source: Source, evaluation: Evaluation[Located]) -> Path:
    """Write the folder and return its path: `out`, or the first free `out-2`, `out-3`, … where that exists.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    found: Located = evaluation.found
    with whole_folder(out) as folder:
        path = folder.path
        rows = (
            (name, int((~np.isnan(pixels)).sum()), _median(pixels), _cell(pck(share)))
            for name, pixels, share in zip(found.names, found.distance.T, found.relative.T, strict=True)
        )
        write_csv(path / "joints.csv", ("joint", "labelled", "median_pixels", "pck"), rows)
        write_csv(
            path / "instances.csv", ("image", "mean_pixels"),
            (
                (source.val.where(place), _cell(float(np.nanmean(pixels))))
                for place, pixels in zip(found.places, found.distance, strict=True)
            ),
        )  # fmt: skip
        results = results_of(found.instances, found.joints, found.names)
        (path / "keypoints.json").write_text(json.dumps(results), encoding="utf-8")
        (path / "distances.png").write_bytes(distances_by_joint({title: found}))
        (path / "worst.png").write_bytes(worst(found, source.val.load))
        parts = [
            f"# {title} on {source.name}",
            f"{headline(found)}.",
            table_by_joint({"median distance, pixels": found}),
            "![distances](distances.png)",
            "The instances that were found worst, circles where joints are; [instances.csv](instances.csv) has all:",
            "![worst](worst.png)",
            *evaluation.left_out(source),
        ]
        text = visible("\n\n".join(parts) + "\n")
        (path / "summary.md").write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder.path


def headline(found: Located) -> str:
    """The numbers in one line."""
    numbers = found.summary
    return (
        f"AP {_percent(numbers['ap'])}, at OKS 0.5 {_percent(numbers['ap_50'])}, at 0.75 {_percent(numbers['ap_75'])}, "
        f"PCK@{PCK_SHARE:g} {_percent(numbers['pck'])}, mean distance {numbers['pixel_error']:.2f} pixels, "
        f"{len(found.places):,} instances"
    )


def table_by_joint(found: Mapping[str, Located]) -> str:
    """Median distance of each network by joint, in Markdown."""
    first = next(iter(found.values()))
    lines = [["", *found], [":---", *["---:"] * len(found)]]
    for joint, name in enumerate(first.names):
        lines.append([name, *(_median(each.distance[:, joint]) or "–" for each in found.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(value: float) -> str:
    return "–" if value < 0 or math.isnan(value) else f"{100 * value:.2f} %"


def _median(pixels: np.ndarray) -> str:
    return "" if np.isnan(pixels).all() else f"{float(np.nanmedian(pixels)):.2f}"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
