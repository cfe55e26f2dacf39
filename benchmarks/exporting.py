"""How long exported networks take in their runtimes, beside their static twins in the same format.

    python -m benchmarks.exporting                 writes benchmarks/results/exporting.csv, then docs/deployment.md
    python -m benchmarks.exporting --docs          writes the table of docs/deployment.md from the CSV again
    python -m benchmarks.exporting --quick         measures little and prints the table only

All networks have fresh weights, all threads of torch, and one image of 224x224 in a call.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from unittest import mock

import torch

import condconv
from condconv.benchmarking.rows import measured_on
from condconv.exporting.formats import FORMATS

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "exporting.csv"
PAGE = HERE.parent / "docs" / "deployment.md"
TABLE = re.compile(r"(?<=<!-- table: exporting -->\n).*?(?=<!-- end -->)", re.DOTALL)

NETWORKS = (
    "condconv_efficientnet_b0_8e", "condconv_mobilenetv1_025", "condconv_mobilenetv2_100", "dynamic_mobilenetv2_100",
)  # fmt: skip
COLUMNS = (
    "network", "format", "version", "batch", "error", "mb", "twin_mb", "ms", "twin_ms", "ratio", "machine", "cores",
    "threads", "torch", "timm", "date",
)  # fmt: skip

Line = dict[str, object]


def lines(names: Sequence[str]) -> Iterator[Line]:
    """A line for each network and format."""
    for name in names:
        torch.manual_seed(0)
        model = condconv.create_model(name).eval()
        for format, kind in FORMATS.items():
            print(f"{name}, {format}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"net{kind.suffix}")
                done = condconv.export(model, path, format=format, batch=1, twin=True)
            beside = done.beside
            assert beside is not None
            yield {
                "network": name, "format": format, "version": metadata.version(kind.runtime), "batch": 1,
                "error": f"{done.error:.1e}", "mb": f"{beside.bytes / 1e6:.2f}",
                "twin_mb": f"{beside.twin_bytes / 1e6:.2f}", "ms": f"{beside.ms:.3f}",
                "twin_ms": f"{beside.twin_ms:.3f}", "ratio": f"{beside.ratio:.3f}", **measured_on(),
            }  # fmt: skip


def table(found: Sequence[Line]) -> str:
    """The lines as the table of the page."""
    rows = ["| network | format | MB | static | ms | static | ratio |", "|---|---|---|---|---|---|---|"]
    for line in found:
        times = f"{float(str(line['ms'])):.2f} | {float(str(line['twin_ms'])):.2f} | {float(str(line['ratio'])):.2f}"
        rows.append(f"| `{line['network']}` | {line['format']} | {line['mb']} | {line['twin_mb']} | {times} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Measure, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="only write the table of the page")
    parser.add_argument("--quick", action="store_true", help="one small network, few calls; nothing is written")
    asked = parser.parse_args()
    if asked.quick:
        with mock.patch("condconv.exporting.verb._BURST_S", 0.0):
            print(table(list(lines(("condconv_mobilenetv1_025",)))), end="")
        return
    if not asked.docs:
        found = list(lines(NETWORKS))
        with OUT.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)
    with OUT.open(encoding="utf-8", newline="") as file:
        measured = list(csv.DictReader(file))
    PAGE.write_text(TABLE.sub(lambda _: table(measured), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
