"""Takes the times of README's table from a run of `make demo` on a quiet machine.

make demo
.venv/bin/python -m benchmarks.accuracy.demo_times runs/demo-1
.venv/bin/python -m benchmarks.accuracy.report

Reads the run's summary.md and writes results/demo_times.csv, a row for each network; README has the ratios to the twin.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.accuracy.in_short import TIMES
from condconv.cpu_info import processor
from condconv.files import write_text
from condconv.runs.folder import RunFolder
from condconv.studies.sweep import commit

COLUMNS = ("network", "epoch_s", "image_ms", "machine", "threads", "torch", "commit", "date")


def rows_of(summary: str) -> Iterator[tuple[str, ...]]:
    """What a run's summary says: network, s of an epoch, ms of an image, threads, torch."""
    found = re.search(r"(\d+) threads, torch ([^,\s]+)", summary)
    if found is None:
        raise SystemExit("demo_times: the summary says no threads and no torch; pass the folder of a finished run")
    threads, torch = found.groups()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary.splitlines() if line[:1] == "|"]
    epoch, image = (lines[0].index(name) for name in ("epoch", "image"))
    for cells in lines[2:]:
        if len(cells) != len(lines[0]):  # the next table
            return
        yield cells[0], cells[epoch].removesuffix(" s"), cells[image].removesuffix(" ms"), threads, torch


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder of make demo")
    given = parser.parse_args()
    today = datetime.now(timezone.utc).date().isoformat()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for network, epoch, image, threads, torch in rows_of(RunFolder(given.run).summary.read_text(encoding="utf-8")):
        writer.writerow((network, epoch, image, processor(), threads, torch, commit(), today))
    write_text(TIMES, buffer.getvalue())
    print(f"wrote {TIMES}")


if __name__ == "__main__":
    main()
