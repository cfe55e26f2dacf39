from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.accuracy import demo_times, in_short
from benchmarks.accuracy.comparison import Outcome, estimate, total_epochs
from benchmarks.accuracy.figure import draw
from benchmarks.accuracy.markdown import between
from benchmarks.accuracy.report import PAGE, README, WHEN, page, studies, verdict, with_tables
from condconv.runs.config import TrainConfig
from condconv.runs.summary import results_table
from condconv.studies.study import START_FROM, WIDENED_TO, Study, read_study
from condconv.tasks import score_of, task_of
from tests.studies.test_study import row, write_study

ARMS = {
    "static": {"variant": "none"},
    "condconv": {"variant": "condconv"},
    "wide": {"widened_to": "condconv"},
    "longer": {"variant": "condconv", "start_from": "static"},
}
CLAIMS = [
    {"better": "condconv", "worse": "static", "source": "a paper"},
    {"better": "condconv", "worse": "wide", "source": "a paper"},
    {"better": "static", "worse": "longer", "source": "another"},
]


@pytest.fixture()
def study(tmp_path: Path) -> Study:
    return read_study(write_study(tmp_path, arms=ARMS, claims=CLAIMS, seeds=[0, 1, 2], remarks="We saw *this*."))


def outcome(study: Study, accuracies: dict[str, list[float]], macs: dict[str, int]) -> Outcome:
    numbers = {"params": "10", "ratio": "1.1", "train_loss": "0.5", "wall_s": "60", "epochs": "2"}
    variants = {"condconv": "condconv", "longer": "condconv"}
    finished = {
        (arm, seed): row(
            arm, seed, **numbers, macs=str(macs[arm]), variant=variants.get(arm, "none"), top1_pct=f"{top1}"
        )
        for arm, values in accuracies.items()
        for seed, top1 in enumerate(values)
    }
    return Outcome(study, finished)


@pytest.mark.parametrize("study", studies(), ids=lambda study: study.name)
def test_every_arm_has_a_network_of_the_task(study: Study) -> None:
    source = SimpleNamespace(classes=("a", "b"), channels=3)
    for own in study.arms.values():
        settings = {**study.common, **own}
        settings = {name: value for name, value in settings.items() if name not in (WIDENED_TO, START_FROM)}
        assert task_of(TrainConfig(**settings, data=study.data)).network_arguments(source)


def test_intervals_are_student_t() -> None:
    # 2.776 is the two-sided 95 % point of t with four degrees of freedom.
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.half_width == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    assert math.isnan(estimate([1.0]).half_width) and estimate([1.0]).verdict == 0


def test_differences_are_paired_by_seed(study: Study) -> None:
    # The networks differ by seed far more than from one another; the third seed of one of them is missing.
    found = outcome(study, {"static": [10, 50, 90], "condconv": [11, 51.2]}, {"static": 100, "condconv": 110})
    difference = found.difference("condconv", "static")
    assert difference is not None and difference.seeds == 2 and difference.mean == pytest.approx(1.1)
    assert difference.half_width == pytest.approx(12.7062 * 0.1, rel=1e-3)
    assert difference.verdict == 0


def test_references_are_of_equal_epochs_and_cost(study: Study) -> None:
    accuracies = dict.fromkeys(ARMS, [50.0])
    found = outcome(study, accuracies, {"static": 100, "condconv": 110, "wide": 111, "longer": 110})
    assert (found.twin("condconv"), found.widened("condconv")) == ("static", "wide")
    assert (total_epochs(study, "longer"), found.twin("longer"), found.widened("longer")) == (4, None, None)
    dear = outcome(study, accuracies, {"static": 100, "condconv": 110, "wide": 113, "longer": 110})
    assert dear.widened("condconv") is None


def test_a_twin_has_the_same_shape(study: Study) -> None:
    # "static" has the multiply-adds that the row of the arm says its twin has, or it is the twin of another shape.
    found = outcome(study, {"static": [50.0], "condconv": [51.0]}, {"static": 100, "condconv": 220})
    assert found.twin("condconv") is None


@pytest.mark.parametrize("path", [README, WHEN])
def test_other_pages_have_the_tables_of_the_studies(path: Path) -> None:
    text = path.read_text()
    assert text == with_tables(text, path, [Outcome(study, study.finished()) for study in studies()])


def test_times_are_those_of_the_runs_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def result(name: str, epoch_s: float, image_ms: float) -> Any:
        cost = SimpleNamespace(params=10, macs=20)
        spec = SimpleNamespace(name=name, cost=cost, ratio=1.0)
        return SimpleNamespace(spec=spec, score=0.5, times=(epoch_s, image_ms))

    networks = [result("conditional", 30.0, 0.75), result("static", 20.0, 0.5), result("widened", 21.0, 0.55)]
    other = "| condition | static |\n|:---|---:|\n| plain | 50 % |"
    told = "Image: median of eager forward passes of one image on cpu, 2 threads, torch 2.14.1+cu130, x86_64."
    (tmp_path / "summary.md").write_text("\n\n".join([results_table(networks, score_of("classify")), other, told]))
    monkeypatch.setattr(in_short, "TIMES", tmp_path / "times.csv")
    monkeypatch.setattr(demo_times, "TIMES", tmp_path / "times.csv")
    monkeypatch.setattr("sys.argv", ["demo_times", str(tmp_path)])
    demo_times.main()
    outcomes = [Outcome(study, study.finished()) for study in studies()]
    text = with_tables(README.read_text(), README, outcomes)
    rows = [line for line in text.splitlines() if line.startswith(("| conditional |", "| static |", "| widened |"))]
    assert [row.split(" | ")[-2:] for row in rows] == [["1.50", "1.50 |"], ["1.00", "1.00 |"], ["1.05", "1.10 |"]]
    assert "2 threads, torch 2.14.1+cu130" in text


def test_marks_that_are_gone_are_said() -> None:
    assert between("a <!-- x --> b <!-- end of x --> c", "x", ["new\n"]) == "a <!-- x -->\nnew\n<!-- end of x --> c"
    with pytest.raises(ValueError, match="<!-- x --> and <!-- end of x --> are not both in the page"):
        between("a <!-- x --> b", "x", ["new"])


def test_seeds_above_both_are_those_of_three_networks(study: Study) -> None:
    macs = {"static": 100, "condconv": 110, "wide": 111}
    found = outcome(study, {"static": [70, 75, 70], "condconv": [72, 74, 80], "wide": [71, 73]}, macs)
    assert found.above_both("condconv") == (1, 2)
    assert outcome(study, {"static": [70], "condconv": [72]}, macs).above_both("condconv") == (0, 0)


def test_gains_by_condition_and_by_epoch_are_paired(study: Study) -> None:
    accuracies = {"static": [70, 71, 72], "condconv": [72, 73, 74], "wide": [73, 74, 75]}
    found = outcome(study, accuracies, {"static": 100, "condconv": 110, "wide": 111})
    study.results.parent.mkdir(exist_ok=True)
    conditions = [
        f"small,{arm},{seed},{name},{seen},{30 * seed + gain}"
        for arm, gain in (("static", 20), ("condconv", 21), ("wide", 20.5))
        for seed in (0, 1, 2) for name, seen in (("plain", 1), ("blurred", 0))
    ]  # fmt: skip
    epochs = [
        f"small,{arm},{seed},{epoch},{seed + loss / epoch},1,50"
        for arm, loss in (("static", 0.5), ("condconv", 0.4)) for seed in (0, 1, 2) for epoch in (1, 2)
    ]  # fmt: skip
    for name, head, rows in (
        ("by_condition", "study,arm,seed,condition,seen,top1_pct", conditions),
        ("epochs", "study,arm,seed,epoch,train_loss,val_loss,top1_pct", epochs),
    ):
        study.results.with_name(f"small_{name}.csv").write_text("\n".join([head, *rows]) + "\n")
    text = page([found])
    assert "| arm | gain over | plain | blurred * |" in text and "| static |  | 50.00 | 50.00 |" in text
    assert "| condconv | static | +1.00 ± 0.00 | +1.00 ± 0.00 |" in text
    assert "| condconv | wide | +0.50 ± 0.00 | +0.50 ± 0.00 |" in text
    assert "| condconv | -0.100 ± 0.000 | -0.050 ± 0.000 | -0.050 ± 0.000 |" in text


def test_the_page_says_gains_verdicts_and_what_is_missing(study: Study) -> None:
    found = outcome(
        study,
        {"static": [70, 71, 72], "condconv": [72, 73.1, 73.9], "wide": [73, 74.2, 74.8]},
        {"static": 100, "condconv": 110, "wide": 111},
    )
    text = page([found])
    assert "| condconv | +2.00 ± 0.25 | static | -1.00 ± 0.25 | wide | 1.0091 |" in text
    assert "both intervals above 0: none of the arms" in text
    assert "| condconv better than static | a paper | +2.00 ± 0.25 | confirmed |" in text
    assert "| condconv better than wide | a paper | -1.00 ± 0.25 | contradicted |" in text
    assert "| static better than longer | another | – | not run |" in text
    assert "We saw *this*." in text
    assert f"condconv sweep {study.path} --seeds 0 1 2" in text  # no run is in the table


def test_the_picture_has_every_arm(study: Study, tmp_path: Path) -> None:
    found = outcome(
        study,
        {"static": [70, 71], "condconv": [72, 73.1], "wide": [73]},
        {"static": 100, "condconv": 110, "wide": 111},
    )
    draw(found, tmp_path / "new" / "small.svg")
    assert (tmp_path / "new" / "small.svg").read_text(encoding="utf-8").count("<!-- condconv -->") == 2


def test_nothing_is_run_yet(study: Study) -> None:
    text = page([Outcome(study, {})])
    assert "## Not run" in text and f"condconv sweep {study.path} --seeds 0 1 2\n" in text
    assert "many_runs --data DATA --out OUT --minutes 60 small\n" in text
    assert verdict(None) == "not run" and verdict(estimate([2.0])) == "undecided (one seed)"


def test_the_committed_page_is_made_of_the_committed_tables() -> None:
    assert PAGE.read_text() == page(Outcome(study, study.finished()) for study in studies())
