"""The planner's table: what was measured near a shape decides, on a processor of the same maker where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from condconv.execution import measured, strategies
from condconv.execution.measured import Shape, ranking

Write = Callable[..., None]
SIZES = "batch,positions,in_channels,out_channels,groups,taps,stride,experts,threads"
HEAD = f"kind,layout,{SIZES},machine,grouped_ms,native_ms"
SMALL = "dense,channels_last,1,16,8,8,1,9,1,8,1"
LARGE = "dense,channels_last,64,4096,256,256,1,9,1,8,1"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Puts another table in the place of the committed one."""

    def put(processor: str, *lines: str) -> None:
        path = tmp_path / "measured.csv"
        path.write_text("\n".join((HEAD, *lines)) + "\n")
        monkeypatch.setattr(measured, "TABLE", path)
        monkeypatch.setattr(measured, "processor", lambda: processor)
        forget()

    def forget() -> None:
        for cached in (measured._table, measured._field, measured.ranking):
            cached.cache_clear()

    yield put
    monkeypatch.undo()
    forget()


def shape(batch: int, positions: int, channels: int) -> Shape:
    return Shape("dense", True, batch, positions, channels, channels, 1, 9, 1, 8, 1)


def test_the_nearest_shapes_decide(write: Write) -> None:
    write("A 1", f"{SMALL},A 1,1.0,2.0", f"{LARGE},A 1,3.0,2.0")
    assert ranking(shape(2, 20, 10)) == ("grouped", "native")
    assert ranking(shape(32, 3000, 200)) == ("native", "grouped")


def test_neighbours_are_averaged_and_a_missing_time_is_a_slow_one(write: Write) -> None:
    write("A 1", f"{SMALL},A 1,1.0,1.1", f"{SMALL},A 1,1.0,1.1", f"{SMALL},A 1,,1.0")
    assert ranking(shape(1, 16, 8)) == ("native", "grouped")


def test_a_nearer_neighbour_weighs_more(write: Write) -> None:
    write("A 1", f"{SMALL},A 1,1.0,2.0", *[f"{LARGE},A 1,2.0,1.0"] * 2)
    assert ranking(shape(1, 16, 8)) == ("grouped", "native")


def test_a_trend_goes_on_beyond_what_was_measured(write: Write) -> None:
    lines = [f"dense,channels_last,{2**i},16,8,8,1,9,1,8,1,A 1,1.0,{2 - i / 4}" for i in range(4)]
    write("A 1", *lines)  # the native operator gains on the other with the batch, and is still slower at 8
    assert ranking(shape(8, 16, 8)) == ("grouped", "native")
    assert ranking(shape(64, 16, 8)) == ("native", "grouped")


def test_a_field_goes_near_what_was_measured(write: Write) -> None:
    batches, slowness = range(1, 40, 3), [1.0, 1.5, 2.0, 1.2] * 4
    lines = [f"dense,channels_last,{b},16,8,8,1,9,1,8,1,A 1,1.0,{s}" for b, s in zip(batches, slowness, strict=False)]
    write("A 1", *lines)
    ((names, cells),) = measured.cells_of("A 1").values()
    field = measured.fit(names, cells)
    places, expected = measured.tensors(cells)
    prior = measured.covariance(places) - measured.NOISE * torch.eye(len(cells), dtype=places.dtype)
    smoothed = prior @ torch.linalg.solve(measured.covariance(places), expected)
    for cell, row in zip(cells, smoothed.tolist(), strict=True):
        assert list(field.slowness(cell.place).values()) == pytest.approx(row, abs=1e-9)


def test_what_was_measured_on_the_same_makers_processor_counts(write: Write) -> None:
    lines = [f"{SMALL},A 1,1.0,2.0", *[f"{SMALL},B 7,2.0,1.0"] * 2]
    write("A 2", *lines)
    assert ranking(shape(1, 16, 8)) == ("grouped", "native")
    write("B 9", *lines)
    assert ranking(shape(1, 16, 8)) == ("native", "grouped")
    write("C 1", *lines)  # nobody measured there: all of it
    assert ranking(shape(1, 16, 8)) == ("native", "grouped")


def test_a_kind_that_was_not_measured_has_no_ranking(write: Write) -> None:
    write("A 1", f"{SMALL},A 1,1.0,2.0")
    assert ranking(shape(1, 16, 8)._replace(kind="pointwise")) == ()


def test_shapes_may_be_asked_for_while_torch_is_traced(write: Write) -> None:
    write("A 1", f"{SMALL},A 1,1.0,2.0")
    with FakeTensorMode():
        assert ranking(shape(1, 16, 8)) == ("grouped", "native")
    assert ranking(shape(1, 16, 8)) == ("grouped", "native")


@pytest.mark.parametrize("kind", ["pointwise", "dense", "depthwise", "grouped"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_committed_table_ranks_registered_strategies(kind: str, channels_last: bool) -> None:
    names = ranking(Shape(kind, channels_last, 4, 196, 96, 96, 1, 9, 1, 8, torch.get_num_threads()))
    assert names and set(names) <= set(strategies)
