from __future__ import annotations

import sys
from pathlib import Path

import pytest

from condconv.cli.cluster import submit
from condconv.errors import ArgumentError

pytest.importorskip("submitit")


def test_calls_are_made_in_processes_of_their_own(tmp_path: Path) -> None:
    jobs = submit([["completion", "bash"], ["completion", "csh"]], "local", ["timeout_min=5"], tmp_path / "jobs")
    assert [job.result() for job in jobs] == [0, 2]
    assert "complete -" in jobs[0].stdout() and "error: " in jobs[1].stderr()


@pytest.mark.parametrize(
    ("cluster", "options", "message"),
    [
        ("local", ["timeout_min"], "--cluster-options timeout_min: must be NAME=VALUE"),
        ("local", ["timeout_min=long"], 'Parameter "timeout_min" expected type'),
        ("local", ["slurm_partitoin=gpu"], "Unknown argument 'partitoin'"),
        ("slurm", [], "on a slurm cluster"),
    ],
)
def test_what_cannot_be_submitted_is_said(cluster: str, options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        submit([["doctor"]], cluster, options, tmp_path)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ArgumentError, match=r"pip install 'condconv\[cluster\]'"):
        submit([["doctor"]], "local", [], tmp_path)
