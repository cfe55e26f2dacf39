"""What compression saves and loses, step by step: networks trained on scikit-learn's digits, one seed.

python -m benchmarks.compression            writes benchmarks/results/compression.csv, then docs/compression.md
python -m benchmarks.compression --docs     writes the table of docs/compression.md from the CSV again
"""

from __future__ import annotations

import argparse
import csv
import platform
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

import condconv
from benchmarks import inference_form
from condconv.compression.verb import accuracy

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "compression.csv"
PAGE = HERE.parent / "docs" / "compression.md"
TABLE = re.compile(r"(?<=<!-- table: compression -->\n).*?(?=<!-- end -->)", re.DOTALL)

EPOCHS = {"condconv_mobilenetv1_025": 12, "condconv_efficientnet_b0_8e": 3}
MAX_LOSSES = (0.1, 1.0)

Line = dict[str, str]


def measured() -> Iterator[Line]:
    """A line for each network, allowed loss and step. Routing is recorded on the training images."""
    train_images, train_labels, images, labels = inference_form.digits()
    about = {"machine": platform.machine(), "torch": torch.__version__, "condconv": condconv.__version__}
    for name, epochs in EPOCHS.items():
        inference_form.EPOCHS = epochs
        model = inference_form.trained(name, train_images, train_labels)
        seen, asked = train_images.split(120), list(zip(images.split(120), labels.split(120), strict=True))
        for max_loss in MAX_LOSSES:
            done = condconv.compress(model, seen, max_loss=max_loss, score=partial(accuracy, loader=asked))
            for step in done.steps:
                yield {
                    "network": name, "epochs": str(epochs), "max_loss": str(max_loss), "step": step.name,
                    "accuracy": f"{step.score:.2f}", "bytes": str(step.bytes), "twin_bytes": str(done.twin_bytes),
                    "macs": str(step.macs), **about,
                }  # fmt: skip


def table(lines: list[Line]) -> str:
    """The table of the page."""
    rows = ["| network | loss allowed | step | accuracy | MB | of the static file | M mult-adds |", "|---" * 7 + "|"]
    for line in lines:
        size, twin = int(line["bytes"]), int(line["twin_bytes"])
        cells = [f"`{line['network']}`", line["max_loss"], line["step"], f"{line['accuracy']} %", f"{size / 1e6:.2f}"]
        rows.append("| " + " | ".join([*cells, f"{size / twin:.2f}", f"{int(line['macs']) / 1e6:.2f}"]) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Measure, write the CSV and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="write the table from the CSV, without measuring")
    if not parser.parse_args().docs:
        lines = list(measured())
        with OUT.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    with OUT.open(newline="", encoding="utf-8") as file:
        text = table(list(csv.DictReader(file)))
    PAGE.write_text(TABLE.sub(lambda _: text, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
