"""The accuracy of a study's finished runs under each condition, those included that no training image was under.

python -m benchmarks.accuracy.by_condition benchmarks/accuracy/demo.yaml --out runs/sweep

Writes results/<study>_by_condition.csv beside the study, one row for each run and condition.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import torch

from condconv.evaluation.evaluate import evaluate
from condconv.files import write_text
from condconv.runs.trained import load_trained
from condconv.signals import StopRequest
from condconv.studies.study import Study, read_study
from condconv.studies.sweep import Sweep, find_finished, network_of
from condconv.tasks import task_of

HELD_OUT = ("noisy:1.5", "noisy:2", "blurred")
COLUMNS = ("study", "arm", "seed", "condition", "seen", "top1_pct")


def rows_of(study: Study, data: str | None, out: Path) -> list[tuple[object, ...]]:
    """Evaluate every run that is in the table and whose folder is still there."""
    rows: list[tuple[object, ...]] = []
    with StopRequest() as stop:
        sweep = Sweep(study, data, out, None, stop)
        seen = str(study.common["conditions"]).split(",")
        for arm, seed in study.finished():
            config = sweep.config(arm, seed)
            folder = find_finished(out, config.run_name)
            if folder is None:
                continue
            for condition in (*seen, *HELD_OUT):
                source = sweep.source.limited(None, config.limit_val).under(condition)
                model, source = load_trained(folder.path, network_of(config), source)
                found = evaluate(model, source, task_of(config), batch_size=250, workers=0, device=torch.device("cpu"))
                top1 = f"{100 * found.found.top1:.2f}"
                rows.append((study.name, arm, seed, condition, int(condition in seen), top1))
    return rows


def main() -> None:
    """Evaluate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    given = parser.parse_args()
    study = read_study(given.study)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows_of(study, given.data, given.out))
    path = study.path.parent / "results" / f"{study.name}_by_condition.csv"
    write_text(path, buffer.getvalue())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
