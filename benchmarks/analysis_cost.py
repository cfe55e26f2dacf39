"""What the statistics of `condconv analyze` cost: a pass over 60,000 small images against plain evaluation, and memory.

    python benchmarks/analysis_cost.py     writes benchmarks/results/analysis_cost.csv

Each batch is loaded once, evaluated plainly and run through the collector, in turns in either order, so that whatever
else the machine does meets both alike. Plain evaluation is loading, forward pass and counting what is right. The passes
with changed coefficients are not part of it: they stop at 2,000 images, however many there are.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import platform
import time
from pathlib import Path

import torch

import condconv
from condconv.analysis import validation_batches
from condconv.analysis.collect import Accuracy, Collector
from condconv.cpu_info import processor
from condconv.data import open_source

OUT = Path(__file__).resolve().parent / "results" / "analysis_cost.csv"
NETWORK = "condconv_mobilenetv1_025"
MEASURED_AT = (1_000, 10_000, 30_000, 60_000)
BATCH_SIZE = 128


def resident_mb() -> float:
    """Memory of this process, in 10^6 bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    source = open_source("fashion-mnist")
    source = dataclasses.replace(source, val=source.train)
    model = condconv.create_model(NETWORK, num_classes=10, in_chans=1, num_experts=8, output_stride=4).eval()
    collector = Collector(model, num_classes=10, counterfactual_images=0)
    accuracy = Accuracy()
    loading_s = plain_s = analysed_s = 0.0
    images_done = 0
    rows = []
    batches = iter(validation_batches(source, BATCH_SIZE, workers=0))
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        loading_s += time.perf_counter() - started
        if batch is None:
            break
        images, labels, places, decoded = batch

        def plain(images: torch.Tensor = images, labels: torch.Tensor = labels) -> float:
            started = time.perf_counter()
            with torch.inference_mode():
                accuracy.add(model(images), labels)
            return time.perf_counter() - started

        if images_done // BATCH_SIZE % 2:
            plain_s += plain()
        started = time.perf_counter()
        collector.add(images, labels, places, decoded)
        analysed_s += time.perf_counter() - started
        if not images_done // BATCH_SIZE % 2:
            plain_s += plain()
        images_done += len(labels)
        if any(images_done - len(labels) < count <= images_done for count in MEASURED_AT):
            rows.append(
                {
                    "images": images_done,
                    "plain_s": f"{loading_s + plain_s:.2f}",
                    "analysed_s": f"{loading_s + analysed_s:.2f}",
                    "ratio": f"{(loading_s + analysed_s) / (loading_s + plain_s):.4f}",
                    "resident_mb": f"{resident_mb():.1f}",
                    "network": f"{NETWORK}, 8 experts, 28x28, stride 4, batch {BATCH_SIZE}",
                    "machine": processor(),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "condconv": condconv.__version__,
                }
            )
            print(
                {name: rows[-1][name] for name in ("images", "plain_s", "analysed_s", "ratio", "resident_mb")},
                flush=True,
            )
    with OUT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
