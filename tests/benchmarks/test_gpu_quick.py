"""The plumbing of `python -m benchmarks.gpu --quick`, on the CPU: what only a device can show is marked as failed."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_quick
from benchmarks.gpu_quick import COMPILED, EAGER, GRAPH, Clock, LayerCell, NetworkCell, Rows, Work
from condconv.timing import measure

CPU = torch.device("cpu")
NETWORK = "condconv_mobilenetv1_025"


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_quick, "measure", lambda calls, *_, **__: measure(calls, quick=True))
    monkeypatch.setattr(LayerCell, "calls", 2)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_without_a_device_it_says_so_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--quick", "--out", str(tmp_path)]) == 2
    assert "no CUDA device was found; nothing was measured" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_the_plan_has_networks_first_and_the_targets_rows_among_them() -> None:
    cells = gpu_quick.plan()
    assert len({cell.name for cell in cells}) == len(cells)
    kinds = [cell.kind for cell in cells]
    assert kinds == sorted(kinds, reverse=True) and kinds[0] == "network"
    asked = [cell.work for cell in cells if cell.kind == "network"]
    assert asked[:3] == [Work(True, 128), Work(False, 128), Work(False, 1, GRAPH)]
    assert {work.batch for work in asked if work.training} == {64, 128}
    assert {work.mode for work in asked} == {EAGER, GRAPH, COMPILED}
    contenders = [name for name, _ in NetworkCell(Work(True, 128, COMPILED)).contenders(CPU)]
    assert contenders == ["static", "ours", "timm"]


def test_networks_and_layers_have_rows_for_all_contenders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tuned: list[tuple[tuple[int, ...], bool]] = []
    monkeypatch.setattr(gpu_quick, "tune", lambda _, x, training: tuned.append((tuple(x.shape), training)))
    cells: list[NetworkCell | LayerCell] = [
        NetworkCell(Work(True, 2, numbers="tf32"), NETWORK, 32),
        NetworkCell(Work(False, 1, GRAPH, "tf32"), NETWORK, 32),
        LayerCell(Work(True, 2), gpu.Shape(3, 8, 8, 4, depthwise=True)),
        LayerCell(Work(False, 1), gpu.Shape(1, 8, 16, 4)),
    ]  # fmt: skip
    with Rows(tmp_path / "rows.csv") as rows:
        assert gpu_quick.run(cells, rows, Clock(1e6), CPU) == []
    found = lines(tmp_path / "rows.csv")
    network = [row for row in found if row["cell"] == cells[0].name]
    assert [row["contender"] for row in network] == ["static", "ours", "ours, tuned"]
    assert all(float(row["median_ms"]) > 0 and not row["error"] for row in network) and network[0]["ratio"] == "1.000"
    assert network[1]["strategy"] and tuned == [((2, 3, 32, 32), True), ((1, 3, 32, 32), False)]
    graphs = [row for row in found if row["mode"] == GRAPH]
    assert len(graphs) == 3 and all("CUDA graphs need a CUDA device" in row["error"] for row in graphs)
    layers = [row["contender"] for row in found if row["cell"] == cells[2].name]
    assert layers[:2] == ["static", "timm"] and sum("auto" in name for name in layers) == 1 and len(layers) >= 5


def test_rows_are_on_the_disk_at_once_and_time_is_kept(tmp_path: Path) -> None:
    clock, cells = Clock(0.0), gpu_quick.plan()
    with Rows(tmp_path / "rows.csv") as rows:
        assert gpu_quick.run(cells, rows, clock, CPU) == cells
        cell = LayerCell(Work(False, 1), gpu.Shape(1, 8, 16, 4))
        for row in gpu_quick.cell_rows(cell, clock, CPU):
            rows.add(row)
            assert lines(tmp_path / "rows.csv")[-1]["error"] == "no time was left"


def test_a_contender_that_fails_has_a_row_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory\nat all")

    monkeypatch.setattr(gpu_quick.TimmCondConv2d, "forward", fail)
    found = list(gpu_quick.cell_rows(LayerCell(Work(True, 2), gpu.Shape(1, 8, 16, 4)), Clock(1e6), CPU))
    assert [row["contender"] for row in found if row.get("error")] == ["timm"] and found[0]["error"] == "no memory"
    assert {str(row["contender"]).split()[0] for row in found[1:]} == {"static", "ours"}
