from __future__ import annotations

from pathlib import Path

from benchmarks.loader import PAGE, SMALL, Case, measure, page, read, write_photographs
from condconv.data import open_source
from condconv.runs.config import TrainConfig


def test_the_loader_is_measured_beside_the_step(tmp_path: Path) -> None:
    write_photographs(tmp_path, count=20)
    config = TrainConfig(data=str(tmp_path), model=SMALL, batch_size=2, input_size=32)
    row = next(measure(Case("toy", open_source(str(tmp_path)).resized(32), config), seconds=0.01))
    assert row["workers"] == "0" and float(row["loader_images_per_s"]) > 0 < float(row["step_images_per_s"])
    assert f"| toy | 0 | {row['loader_images_per_s']} |" in page([row])


def test_the_committed_page_is_made_of_the_committed_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read())
