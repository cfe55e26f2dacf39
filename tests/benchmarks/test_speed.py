"""The benchmarks measure what they say and write complete rows; no test looks at a time."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed import hotspots, layers, networks, planner_fit, planner_table, random_shapes, training, variants
from benchmarks.speed.instructions import held_to
from benchmarks.speed.results import Line, read, table
from benchmarks.speed.roofline import Roofline, size_class
from benchmarks.speed.subjects import OURS, STATIC, Work
from condconv.benchmarking.memory import MEMORY
from condconv.execution import execute, fitted, strategies
from condconv.execution.fitted import SIZES
from condconv.variants import variants as registry

SMALL = "condconv_mobilenetv1_025"
Run = Callable[..., list[Line]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script quickly in this process and return what it wrote."""

    def quick(script: object, *words: str) -> list[Line]:
        script.main(["--quick", "--threads", "1", "--out", str(tmp_path), *words])
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
    roofline.peak = lambda dtype: 100.0
    roofline.bandwidth = {1: 10.0, 256: 5.0}.__getitem__
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


def test_variants_compares_the_same_function_written_twice(run: Run) -> None:
    lines = run(variants)
    assert [line["contender"] for line in lines] == [STATIC, OURS, variants.OBVIOUS]
    assert filled(lines, "strategy", "commit")
    assert lines[0]["ratio"] == "1.000" and float(lines[1]["macs_ratio"]) > 1


@pytest.mark.parametrize("name", registry)
def test_the_obvious_form_of_a_variant_computes_the_same(name: str) -> None:
    kind: Any = next(layer for layer in registry[name].layers if layer.static_type is torch.nn.Conv2d)
    for arguments in ({"kernel_size": 1}, {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False}):
        layer, x = kind(8, 12, **arguments, num_experts=None if name != "fdconv" else 4).eval(), torch.rand(3, 8, 7, 7)
        torch.testing.assert_close(variants.Obvious(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


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


def test_planner_table_measures_every_strategy_in_every_layout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_table, "held_to", lambda name, module, task: planned(task))
    lines = run(planner_table)
    assert tuple(lines[0]) == planner_table.COLUMNS
    assert {(line["kind"], line["layout"], line["work"]) for line in lines} == {
        (kind, layout, work)
        for kind in ("pointwise", "depthwise")
        for layout in ("contiguous", "channels_last")
        for work in ("forward", "training")
    }
    for line in lines:
        assert float(line["grouped_ms"]) > 0 and float(line["batched_gemm_ms"]) > 0
    assert {cell.kind for cell in planner_table.cells()} == set(planner_table.KINDS)
    assert planner_table.MOST_MACS < max(cell.macs for cell in planner_table.cells()) <= planner_table.LARGEST_MACS


def planned(task: dict[str, Any]) -> Iterator[dict[str, object]]:
    """What the process that `held_to` starts would answer."""
    for one in task["cells"]:
        yield from planner_table.rows(planner_table.Cell(**one), task["instructions"])


def line_of(batch: int, native_ms: float, grouped_ms: float, **others: str) -> Line:
    sizes = dict.fromkeys(SIZES, "8") | {"batch": str(batch)}
    question = {"instructions": "avx2", "work": "forward", "kind": "dense", "layout": "contiguous"}
    return {**question, **sizes, "native_ms": str(native_ms), "grouped_ms": str(grouped_ms), **others}


def test_the_fit_goes_near_what_was_measured_and_follows_trends() -> None:
    names = ("native", "grouped")
    lines = [line_of(2**i, 1.0, 2**-1 * 2 ** (i / 2)) for i in range(6)]  # grouped wins below 4, loses above
    ((_, cells),) = planner_fit.cells_of(lines, names).items()
    kept, field = planner_fit.fit(names, cells, kept=4)
    assert len(kept) == 4 and all(cell in cells for cell in kept)
    for cell in cells:
        assert list(field.slowness(cell.place).values()) == pytest.approx(cell.slowness, abs=0.35)
    beyond = field.slowness(planner_fit.cells_of([line_of(128, 1, 1)], names).popitem()[1][0].place)
    assert beyond["grouped"] > beyond["native"]


def test_the_fit_that_is_written_is_the_fit_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("native", "grouped")
    measured = planner_fit.cells_of([line_of(2**i, 1.0, 0.4 * 1.3**i) for i in range(9)], names)
    rows = list(planner_fit.fitted_rows(names, measured))
    with table(tmp_path / "fitted.csv", tuple(rows[0])) as add:
        for row in rows:
            add(row)
    monkeypatch.setattr(fitted, "TABLE", tmp_path / "fitted.csv")
    read_again = fitted._table.__wrapped__()
    ((question, cells),) = measured.items()
    _, field = planner_fit.fit(names, cells)
    for cell in cells:
        got, expected = (one.slowness(cell.place) for one in (read_again[question], field))
        assert list(got.values()) == pytest.approx(list(expected.values()), abs=0.02)


def test_the_check_counts_wrong_choices() -> None:
    names = ("native", "grouped")
    odd_one_out = [line_of(2**i, *((2.0, 1.0) if i == 3 else (1.0, 2.0))) for i in range(8)]
    (row,) = planner_fit.check(names, planner_fit.cells_of(odd_one_out, names))
    assert (row["instructions"], row["cells"], row["exceed"], row["worst"]) == ("avx2", 8, 1, "2.00")


def test_the_committed_fit_is_that_of_the_committed_table() -> None:
    lines = read(planner_table.TABLE)
    assert set(planner_table.PLANNED) == {column.removesuffix("_ms") for column in lines[0] if column.endswith("_ms")}
    rows = list(planner_fit.fitted_rows(planner_table.PLANNED, planner_fit.cells_of(lines, planner_table.PLANNED)))
    committed = read(fitted.TABLE)
    assert [{**row} for row in rows] == committed
    assert fitted.TABLE.stat().st_size < 120_000


def test_random_shapes_are_odd_and_always_the_same() -> None:
    shapes = list(random_shapes.shapes())
    assert len({shape.name for shape in shapes}) == 100 and shapes == list(random_shapes.shapes())
    most = min(4, os.cpu_count() or 1)
    assert {shape.threads for shape in shapes} == set(range(1, most + 1))
    assert {shape.stride for shape in shapes} == {1, 2}
    assert 20 < sum(shape.isa == "avx2" for shape in shapes) < 50
    assert all(s.in_channels // s.groups % 16 or s.kind == "depthwise" and s.groups % 16 for s in shapes)
    table = {(c.kind, c.batch, c.in_channels, c.out_channels, c.height, c.width) for c in planner_table.cells()}
    assert not table & {(s.kind, s.batch, s.in_channels, s.out_channels, s.height, s.width) for s in shapes}


def test_random_shapes_compares_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in random_shapes.QUICK:
        line = random_shapes.row(shape, quick=True)
        assert float(str(line["error"])) < 1e-5 and line["best"] in planner_table.STRATEGIES
    wrong = lambda *arguments: execute(*arguments) * 1.5  # noqa: E731
    monkeypatch.setattr(random_shapes, "execute", lambda *a: wrong(*a) if a[0].dtype == torch.float32 else execute(*a))
    assert all(float(str(random_shapes.row(shape, quick=True)["error"])) > 0.1 for shape in random_shapes.QUICK)


@pytest.mark.slow
def test_shapes_are_measured_in_a_process_that_is_held_to_avx2() -> None:
    task = {"quick": True, "shapes": [asdict(random_shapes.QUICK[0])]}
    (found,) = held_to("avx2", "benchmarks.speed.random_shapes", task)
    assert found["cell"] == random_shapes.QUICK[0].name
