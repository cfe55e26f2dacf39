"""What compression saves and loses, step by step: a network trained on scikit-learn's digits, one seed.

python -m benchmarks.compression            writes benchmarks/results/compression.csv, then docs/compression.md
python -m benchmarks.compression --docs     writes the table of docs/compression.md from the CSV again
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

import condconv
from benchmarks.inference_form import digits, measure_or_rewrite, trained
from condconv.banks import Packing
from condconv.compression.options import weights_bytes
from condconv.compression.verb import accuracy
from condconv.conversion.apply import conditional_layers
from condconv.inference.form import inference_form

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "compression.csv"
PAGE = HERE.parent / "docs" / "compression.md"
TABLE = re.compile(r"(?<=<!-- table: compression -->\n).*?(?=<!-- end -->)", re.DOTALL)

NAME, LARGE = "condconv_mobilenetv1_025", "condconv_efficientnet_b0_8e"
MAX_LOSS = 0.1

Line = dict[str, str]


def measured() -> Iterator[Line]:
    """A line for each step; of a large network sizes alone. Routing is that of the training images."""
    about = {"machine": platform.machine(), "torch": torch.__version__, "condconv": condconv.__version__}
    train_images, train_labels, images, labels = digits()
    model = trained(NAME, train_images, train_labels)
    seen, asked = train_images.split(120), list(zip(images.split(120), labels.split(120), strict=True))
    done = condconv.compress(model, seen, max_loss=MAX_LOSS, score=partial(accuracy, loader=asked))
    for step in done.steps:
        yield {
            "network": NAME, "max_loss": str(MAX_LOSS), "step": step.name, "accuracy": f"{step.score:.2f}",
            "bytes": str(step.bytes), "twin_bytes": str(done.twin_bytes), "macs": str(step.macs), **about,
        }  # fmt: skip
    with torch.device("meta"):  # shapes are enough
        model, twin = condconv.create_model(LARGE), condconv.static_twin(LARGE)
        stored = {
            "kernels in int8, rest in bf16": Packing("int8"),
            "8 kernels of 8 in each layer, 4 bits": Packing("int4", kernels=8),
        }
    for step_name, packing in stored.items():
        made = inference_form(model, {name: packing for name, _ in conditional_layers(model)}.__getitem__, "bf16")
        macs = condconv.count(made.to_empty(device="cpu"), (3, 224, 224)).macs
        yield {
            "network": LARGE, "max_loss": "", "step": step_name, "accuracy": "", "bytes": str(weights_bytes(made)),
            "twin_bytes": str(weights_bytes(twin)), "macs": str(macs), **about,
        }  # fmt: skip


def table(lines: list[Line]) -> str:
    """The table of the page."""
    rows = ["| network | loss allowed | step | accuracy | MB | of the static file | M mult-adds |", "|---" * 7 + "|"]
    for line in lines:
        size, twin = int(line["bytes"]), int(line["twin_bytes"])
        reached = f"{line['accuracy']} %" if line["accuracy"] else "–"
        cells = [f"`{line['network']}`", line["max_loss"] or "–", line["step"], reached, f"{size / 1e6:.2f}"]
        rows.append("| " + " | ".join([*cells, f"{size / twin:.2f}", f"{int(line['macs']) / 1e6:.2f}"]) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Measure, write the CSV and the table."""
    measure_or_rewrite(__doc__, measured, table, OUT, PAGE, TABLE)


if __name__ == "__main__":
    main()
