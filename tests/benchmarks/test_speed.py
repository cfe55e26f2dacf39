"""The benchmarks measure what they say and write complete rows; no test looks at a time."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.speed import hotspots, layers, networks, planner_table, random_shapes, training
from benchmarks.speed.results import Line, read, table
from benchmarks.speed.roofline import Roofline, size_class
from benchmarks.speed.subjects import OURS, STATIC, Work
from condconv.benchmarking.memory import MEMORY
from condconv.execution import execute, measured, strategies

SMALL = "condconv_mobilenetv1_025"
Run = Callable[..., list[Line]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script quickly in this process and return what it wrote."""

    def quick(script: object, *words: str) -> list[Line]:
        script.main(["--quick", "--threads", "1", "--out", str(tmp_path), *words])  # type: ignore[attr-defined]
        (written,) = tmp_path.iterdir()
        return read(written)

    return quick


def filled(lines: list[Line], *but: str) -> bool:
    """Whether all columns have values, except for some."""
    return all(value or name in but for line in lines for name, value in line.items())


def test_a_file_of_results_is_complete_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with table(path, ("cell", "ms")) as add:
        add({"cell": "one", "ms": 1})
        assert not path.exists()
        add({"cell": "two", "ms": 2})
    with pytest.raises(KeyboardInterrupt), table(path, ("cell", "ms")) as add:
        add({"cell": "one", "ms": 3})
        raise KeyboardInterrupt
    assert [line["ms"] for line in read(path)] == ["1", "2"] and len(list(tmp_path.iterdir())) == 1
    with table(path, ("cell", "ms", "new"), only="^one$") as add:
        add({"cell": "one", "ms": 4, "new": "x"})
    assert read(path) == [{"cell": "two", "ms": "2", "new": ""}, {"cell": "one", "ms": "4", "new": "x"}]


def test_the_roofline_is_the_larger_of_computing_and_reading() -> None:
    roofline = Roofline(0)
    roofline.peak = lambda dtype: 100.0  # type: ignore[assignment, method-assign]
    roofline.bandwidth = {1: 10.0, 256: 5.0}.__getitem__  # type: ignore[assignment, method-assign]
    assert roofline.ms(2e9, 0) == 20.0
    assert roofline.ms(2e9, 1e6, passes=500) == 50.0
    assert roofline.ms(0, 1e9) == 200.0
    assert [size_class(size) for size in (0, 2**20, 2**20 + 1, 1e12)] == [1, 1, 2, 256]


def test_layer_cells_are_those_of_the_targets() -> None:
    cells = list(layers.cells())
    groups = Counter(cell.group for cell in cells)
    assert groups["dense"] == 13 and groups["depthwise"] == 12
    assert len({cell.name for cell in cells}) == len(cells)
    dense = {(c.kernel, c.in_channels, c.out_channels, c.size, c.batch) for c in cells if c.group == "dense"}
    assert {(1, 1024, 1024, 7, 8), (1, 192, 1152, 7, 32), (1, 112, 672, 14, 32), (3, 512, 512, 7, 32)} <= dense
    assert all(c.experts == 8 and c.active is None for c in cells if c.group in ("dense", "depthwise"))
    cell = layers.Cell("active", 3, 4, 6, 5, 2, experts=8, active=2)
    assert cell.macs == (2 * 6 * 4 * 9 * 25, 2 * 2 * 6 * 4 * 9)
    assert (layers.coefficients_of(cell) != 0).sum(1).tolist() == [2, 2]


def test_layers_writes_every_contender(run: Run) -> None:
    lines = run(layers)
    assert filled(lines, "asked", "active", "commit")
    first = [line for line in lines if line["group"] == "dense"]
    assert {line["contender"] for line in first} == {"ours", "static", "static contiguous", "timm"}
    assert {line["storage"] for line in first if line["contender"] == "ours"} == {"f32", "bf16", "int8"}
    assert {line["strategy"] for line in first if line["contender"] == "ours"} <= set(strategies)
    assert [line["ratio"] for line in first if line["contender"] == "static"] == ["1.000"]


def test_networks_compares_twins_of_the_same_precision(run: Run) -> None:
    lines = run(networks, "--model", SMALL)
    assert filled(lines, "storage", "strategy", "commit", *MEMORY)
    assert {(line["contender"], line["rest"]) for line in lines if line["ratio"] == "1.000"} >= {
        (STATIC, "f32"), (STATIC, "bf16"),
    }  # fmt: skip
    assert {line["storage"] for line in lines if line["contender"] == OURS} == {"f32", "bf16", "int8"}
    assert all(line["strategy"] for line in lines if line["contender"] == OURS)


def test_training_and_hotspots_write_both_twins(run: Run, tmp_path: Path) -> None:
    lines = run(training, "--model", SMALL)
    assert [line["contender"] for line in lines] == [STATIC, OURS]
    assert filled(lines, "strategy", "commit", *MEMORY)
    assert float(lines[1]["macs_ratio"]) > 1
    (tmp_path / f"training-{SMALL}.csv").unlink()
    lines = run(hotspots, "--model", SMALL)
    assert filled(lines, "commit")
    for kind in (STATIC, OURS):
        shares = [float(line["share_percent"]) for line in lines if line["contender"] == kind]
        assert math.isclose(sum(shares), 100, abs_tol=1) and len(shares) == hotspots.SHOWN + 1


def test_work_of_a_network_splits_mixing_and_experts() -> None:
    ours, static = Work.of(SMALL, OURS, 64), Work.of(SMALL, STATIC, 64)
    assert static.mixing == static.expert_weights == 0
    assert ours.mixing == ours.expert_weights  # one example mixes each weight of each expert once
    assert ours.expert_weights < 8 * static.static_weights


def test_planner_table_measures_every_strategy_in_every_layout(run: Run) -> None:
    lines = run(planner_table)
    assert tuple(lines[0]) == planner_table.COLUMNS
    assert {(line["kind"], line["layout"]) for line in lines} == {
        (kind, layout) for kind in ("pointwise", "depthwise") for layout in ("contiguous", "channels_last")
    }
    for line in lines:
        assert float(line["grouped_ms"]) > 0 and float(line["batched_gemm_ms"]) > 0
    assert {cell.kind for cell in planner_table.cells()} == set(planner_table.KINDS)
    assert max(cell.macs for cell in planner_table.cells()) <= planner_table.MOST_MACS


def test_the_planners_table_is_checked_by_leaving_out_cells(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    odd_one_out = [measured.Cell((float(i),), (1.0, 0.0) if i == 3 else (0.0, 1.0)) for i in range(8)]
    monkeypatch.setattr(planner_table, "read", lambda path: [{"machine": "A 1"}])
    monkeypatch.setattr(measured, "cells_of", lambda who: {("dense", True): (("grouped", "native"), odd_one_out)})
    (line,) = run(planner_table, "--check")
    assert (line["maker"], line["cells"], line["exceed"], line["worst"]) == ("A", "8", "1", "2.00")


def test_leaving_out_a_cell_is_fitting_the_others() -> None:
    draw = random.Random(3)
    cells = [
        measured.Cell((draw.random() * 9, draw.random() * 9), (draw.random(), draw.random(), 0.0)) for _ in range(12)
    ]
    names = ("grouped", "batched_gemm", "native")
    for left_out, slow in zip(cells, planner_table.slowness_of_choices(cells), strict=True):
        expected = measured.fit(names, [cell for cell in cells if cell is not left_out]).slowness(left_out.place)
        assert slow == 2 ** left_out.slowness[names.index(min(expected, key=expected.__getitem__))]


def test_random_shapes_are_odd_and_always_the_same() -> None:
    shapes = list(random_shapes.shapes())
    assert len({shape.name for shape in shapes}) == 50 and shapes == list(random_shapes.shapes())
    assert {shape.threads for shape in shapes} == {1, 2, 3, 4} and {shape.stride for shape in shapes} == {1, 2}
    assert 10 < sum(shape.isa == "avx2" for shape in shapes) < 25
    assert all(s.in_channels // s.groups % 16 or s.kind == "depthwise" and s.groups % 16 for s in shapes)
    table = {(c.kind, c.batch, c.in_channels, c.out_channels, c.height, c.width) for c in planner_table.cells()}
    assert not table & {(s.kind, s.batch, s.in_channels, s.out_channels, s.height, s.width) for s in shapes}


def test_random_shapes_compares_with_the_reference(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(random_shapes)
    assert all(float(line["error"]) < 1e-5 for line in lines)
    assert {line["best"] for line in lines} <= set(planner_table.STRATEGIES)
    wrong = lambda *arguments: execute(*arguments) * 1.5  # noqa: E731
    monkeypatch.setattr(random_shapes, "execute", lambda *a: wrong(*a) if a[0].dtype == torch.float32 else execute(*a))
    assert all(float(line["error"]) > 0.1 for line in run(random_shapes))


@pytest.mark.slow
def test_shapes_held_to_avx2_run_in_a_process_of_their_own() -> None:
    (found,) = random_shapes.held_to_avx2(random_shapes.QUICK[:1], quick=True)
    assert found["cell"] == random_shapes.QUICK[0].name
