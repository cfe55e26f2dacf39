"""docs/performance.md is what the committed results say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.speed import report
from benchmarks.speed.figure import draw
from benchmarks.speed.machine import gpu_code
from benchmarks.speed.targets import TARGETS, Measured, Results

LIMITS = report.LIMITS.read_text(encoding="utf-8")


def network(contender: str, storage: str, ratio: str) -> dict[str, str]:
    return {
        "mode": "eager", "batch": "1", "rest": "f32", "contender": contender, "storage": storage, "strategy": "native",
        "median_ms": "10", "p10_ms": "9", "p90_ms": "11", "ratio": ratio, "ratio_p10": "1.0", "ratio_p90": "1.4",
        "macs_ratio": "1.06", "roofline_ratio": "1.05", "working_mb": "50.2", "total_mb": "", "machine": "M",
        "cores": "2", "threads": "2", "torch": "2", "timm": "1", "date": "today", "commit": "c",
    }  # fmt: skip


def layer(contender: str, ratio: str, cell: str, asked: str = "") -> dict[str, str]:
    return network(contender, "f32", ratio) | {
        "group": "dense", "cell": cell, "asked": asked, "kernel_size": "1", "in_channels": "8", "out_channels": "8",
        "size": "7", "groups": "1",
    }  # fmt: skip


QUESTION = {"instructions": "avx2", "work": "forward", "kind": "dense", "layout": "contiguous"}
RESULTS = Results(
    networks=[network("static", "", "1"), network("timm", "", "1.65"), network("ours", "f32", "1.234")],
    training=[
        {**network(kind, "", "1.1"), "batch": "32", "size": "96", "working_mb": mb}
        for kind, mb in (("static", "100"), ("ours", "125"))
    ],
    layers=[
        layer(contender, ratio, cell, asked)
        for cell, factor in (("a", 1), ("b", 4))
        for contender, ratio, asked in (
            ("static", "1", ""), ("static contiguous", "1.1", ""), ("timm", "3", ""),
            ("ours", str(factor * 0.5), "auto"), ("ours", "2", "grouped"),
        )
    ],
    random_shapes=[
        {"cell": f"shape {i}", "ratio": ratio, "error": "1e-7", "chosen": "native", "best": "grouped", "work": "step"}
        for i, ratio in enumerate(("0.8", "1.25"))
    ],
    planner=[
        {"machine": "CPU 1", "torch": "2", **QUESTION, "batch": b, "grouped_ms": "2", "native_ms": "1"}
        for b in ("3", "1", "4")
    ],
    planner_check=[{**QUESTION, "exceed": "2", "mean": "1.05", "p95": "1.3", "worst": "1.7"}],
    single_layers=[
        {
            "work": "training", "instructions": "avx2", "threads": "1", "kind": kind, "ratio": ratio, "ratio_p10": "1",
            "ratio_p90": "2", "timm_ratio": "2", "over_timm": over, "macs_ratio": "1.1",
        }
        for kind, ratio, over in (("dense", "1", "0.5"), ("depthwise", "4", "2"))
    ],
    hotspots=[{"cell": "w", "contender": "ours", "operator": "op", "self_ms": "1", "share_percent": "9", "calls": "1"}],
)  # fmt: skip


def test_the_committed_page_is_up_to_date() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page(Results.committed(), LIMITS)
    assert report.PLOT.exists() == bool(Results.committed().layers)


def test_the_planners_table_counts_the_fastest_and_says_how_the_fit_chooses() -> None:
    page = report.page(RESULTS, LIMITS)
    assert "| avx2 | forward | dense | contiguous | 0 | 3 | 2 | 1.05 | 1.3 | 1.7 |" in page


def test_single_layers_are_summed_up_by_instruction_set() -> None:
    page = report.page(RESULTS, LIMITS)
    assert "| training | avx2 | 1 | all | 2 | 2.00 | 2.00 | 1.00 | 1.10 | 2.00 | 4.00 |" in page
    summary = "| 2.00 | ≤ 1.60 | 1.25 | **2.00** (1.00–2.00) | 1.10 | – | no |"
    assert f"| training step of single layers, AVX2 {summary}" in page


def test_targets_stand_beside_what_was_measured() -> None:
    page = report.page(RESULTS, LIMITS)
    assert "| inference, batch 1, f32 | 1.65 | ≤ 1.30 | 1.10 | **1.23** (1.00–1.40) | 1.06 | 1.05 | must |" in page
    assert "| 13 dense and 1x1 layers, geometric mean, f32 | 3.00 | ≤ 1.50 | 1.25 | **1.00** " in page
    assert (
        "| training step, batch 32, 96 px: peak working memory | – | ≤ 1.30 | 1.10 | **1.25** | – | – | must |" in page
    )
    assert page.count("not measured") == len(TARGETS) - 5


def test_tables_show_strategies_means_and_misses() -> None:
    page = report.page(RESULTS, LIMITS)
    head = "| layer | static ms | static contiguous | timm | ours f32 auto | ours f32 grouped |"
    assert f"{head} multiply-adds | roofline | auto chose |" in page
    assert "| **dense: geometric mean** |  | **1.10** | **3.00** | **1.00** | **2.00** |" in page
    assert "step: 1.00 × the time of the best strategy" in page and "1 exceed 1.15" in page
    assert "`op`" in page


def test_what_was_not_measured_on_a_gpu_since_is_marked() -> None:
    row = {
        "network": "net", "numbers": "bf16", "pass": "training", "batch": "32", "contender": "static", "strategy": "",
        "median_ms": "2", "ratio": "1", "machine": "G", "torch": "2", "triton": "3", "commit": "abc", "code": "another",
    }  # fmt: skip
    page = report.page(Results(gpu_networks=[row, {**row, "batch": "64", "code": gpu_code()}]), LIMITS)
    assert "| net | bf16 | training | 32 | 2.000 | – | – | – | – | not measured since abc |" in page
    assert "| net | bf16 | training | 64 | 2.000 | – | – | – | – | abc |" in page


def test_without_results_the_page_says_so() -> None:
    page = report.page(Results(), LIMITS)
    assert page.count("not measured") == len(TARGETS) and "performance.svg" not in page


def test_reached_compares_what_is_printed() -> None:
    target = TARGETS[0]  # must 1.30, aim 1.10
    names = [report.reached(target, Measured(ratio)) for ratio in (1.104, 1.106, 1.304, 1.306, None)]
    assert names == ["aim", "must", "must", "no", "not measured"]


def test_the_plot_is_always_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    draw(RESULTS, first)
    draw(RESULTS, second)
    assert first.read_bytes() == second.read_bytes() and b"multiply-adds" in first.read_bytes()
