"""The benchmark of small networks writes complete rows; no test looks at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed import small
from benchmarks.speed.results import read
from benchmarks.speed.subjects import OURS, STATIC, TIMM


@pytest.mark.slow
def test_a_tiny_layer_is_compared_in_processes_of_their_own(tmp_path: Path) -> None:
    small.main(["--quick", "--threads", "1", "--out", str(tmp_path), "--only", "tiny"])
    lines = read(tmp_path / "small.csv")
    assert len(lines) == 5 * len(small.INSTRUCTIONS) and {line["cell"] for line in lines} == {"tiny layer"}
    assert all(line["beyond_us"] == "0.0" for line in lines if line["contender"] == STATIC)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["one image", "one image, inference forms"])
def test_networks_do_the_same_work(cell: str) -> None:
    found = {row["contender"]: row for row in small.rows(cell, quick=True)}
    assert set(found) == {OURS, STATIC} | ({TIMM} if cell == "one image" else set())
    assert found[OURS]["strategy"] and not found[STATIC]["strategy"]


def test_a_tiny_layer_is_beside_its_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "CALLS", 2)
    found = {row["contender"]: row for row in small.rows("tiny layer", quick=True)}
    assert set(found) == {STATIC, OURS, TIMM, f"{OURS}, routed", f"{TIMM}, routed"}
    assert found[STATIC]["ratio"] == "1.000" and found[OURS]["strategy"]
