from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from condconv.cli.main import main
from condconv.errors import ArgumentError
from condconv.studies.study import columns_of, read_rows, read_study, write_row
from condconv.tasks import score_of

COLUMNS = columns_of(score_of("classify"))
STUDY: dict[str, Any] = {
    "title": "small",
    "data": "digits",
    "seeds": [0, 1],
    "common": {"epochs": 2},
    "arms": {
        "static": {"variant": "none"},
        "condconv": {"variant": "condconv"},
        "wide": {"widened_to": "condconv"},
    },
    "claims": [{"better": "condconv", "worse": "static", "source": "a paper"}],
}


def write_study(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


def row(arm: str, seed: int, **values: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"arm": arm, "seed": str(seed), "data": "digits"} | values


def test_runs_go_seed_by_seed_and_an_arm_holds_those_it_refers_to(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    assert study.cells == [(arm, seed) for seed in (0, 1) for arm in ("static", "condconv", "wide")]
    assert study.settings("wide") == {"epochs": 2, "widened_to": {"epochs": 2, "variant": "condconv"}}
    assert study.results == tmp_path / "results" / "small.csv"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'?"),
        ({"seeds": []}, "seeds is missing or not a list"),
        ({"seeds": [1, 1]}, "must be different whole numbers"),
        ({"common": {"epoch": 2}}, "common: unknown setting 'epoch'; did you mean 'epochs'"),
        ({"common": {"twin": True}}, "common: unknown setting 'twin'"),
        ({"arms": {"a": {"widened_to": "b"}}, "claims": []}, "arm a: unknown arm 'b'"),
        ({"arms": {"a": {"start_from": "a"}}, "claims": []}, "arm a refers to itself (a → a)"),
        ({"arms": {"a": 3}}, "arm a: expected a mapping, found 3"),
        ({"claims": [{"better": "static", "worse": "condconv"}]}, "each needs better, worse and source"),
        ({"claims": [{"better": "statik", "worse": "wide", "source": ""}]}, "did you mean 'static'?"),
    ],
)
def test_a_wrong_study_says_what_and_where(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_study(tmp_path, **changes)
    with pytest.raises(ArgumentError, match=re.escape(message)) as caught:
        read_study(path)
    assert str(path) in str(caught.value)


def test_what_is_no_study(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with pytest.raises(ArgumentError, match="not a readable study"):
        read_study(path)
    for text in ("- a\n", "a: [\n"):
        path.write_text(text)
        with pytest.raises(ArgumentError, match="not a .*study"):
            read_study(path)


def test_a_row_stands_for_a_run_with_the_present_settings_only(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    for seed in (0, 1):
        write_row(study.results, row("static", seed, settings=study.identity("static"), top1_pct="1"), COLUMNS)
    write_row(study.results, row("static", 0, settings=study.identity("static"), top1_pct="2"), COLUMNS)
    assert [(r["seed"], r["top1_pct"]) for r in read_rows(study.results, COLUMNS)] == [("1", "1"), ("0", "2")]
    assert set(study.finished()) == {("static", 0), ("static", 1)}
    longer = read_study(write_study(tmp_path, common={"epochs": 3}))
    assert longer.finished() == {}
    study.results.write_text("a,b\n1,2\n")
    with pytest.raises(ArgumentError, match="its columns are a, b"):
        study.finished()


def test_the_list_says_what_is_not_run_and_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path)
    study = read_study(path)
    write_row(study.results, row("static", 1, settings=study.identity("static")), COLUMNS)
    assert main(["sweep", str(path), "--list", "--arms", "static", "wide"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"static: 1 of 2 done; not run: condconv sweep {path} --arms static --seeds 0",
        f"wide: 0 of 2 done; not run: condconv sweep {path} --arms wide --seeds 0 1",
    ]
    assert main(["sweep", str(path), "--list", "--arms", "statik"]) == 2
    assert "did you mean 'static'?" in capsys.readouterr().err
    assert main(["sweep", str(path), "--list", "--seeds", "7"]) == 2
    assert "is not one of (0, 1)" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "benchmarks" / "accuracy").glob("*.yaml")))
def test_the_studies_of_the_evidence_can_be_read(path: Path) -> None:
    study = read_study(path)
    assert len(study.seeds) >= 3 and study.claims
