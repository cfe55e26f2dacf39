"""`condconv convert` and `condconv count`: tables on stdout, one line and exit code 2 for what cannot be."""

from __future__ import annotations

import csv
import io
import json

import pytest

pytest.importorskip("timm")
pytest.importorskip("jsonargparse")

from condconv.cli.convert import parse_share  # noqa: E402
from condconv.cli.main import main  # noqa: E402


def test_count_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "test_resnet", "--input-size", "3x64x64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "'paper'" in lines[0] and "3x64x64" in lines[0] and lines[-1].startswith("total")


def test_count_as_csv_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "test_resnet", "--csv", "--convention", "executed"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(["count", "test_resnet", "--json", "--convention", "executed"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["convention"] == "executed" and data["macs"] == sum(int(row["executed_macs"]) for row in rows) > 0


def test_convert_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "test_efficientnet", "--targets", "last 2 blocks", "--num-experts", "3", "--share", "none"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "3 experts" in out and "classifier stays static" in out and "converted" in out


def test_convert_takes_what_is_special_to_a_paper(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "cifar_resnet8", "--targets", "layer", "--variant"]
    params = []
    for options in (["kernel_warehouse"], ["kernel_warehouse", "--options", "budget=4", "reduction=8", "norm=none"]):
        assert main([*words, *options]) == 0
        total = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("whole model"))
        params.append(int(total.partition("layers")[2].split()[1].replace(",", "")))
    assert params[1] > 2 * params[0]


ODCONV = ["convert", "cifar_resnet8", "--variant", "odconv", "--options"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["count", "test_resnett"], "did you mean 'test_resnet'"),
        (["count", "no/such/folder"], "no such folder"),
        (["count", "test_resnet", "--input-size", "3,4"], "write it as 3x224x224"),
        (["count", "test_resnet", "--convention", "pape"], "did you mean 'paper'"),
        (["count", "test_resnet", "--csvv"], "did you mean '--csv'"),
        (["convert", "test_resnet", "--targets", "stages.9"], "matches no layer"),
        (["convert", "test_resnet", "--variant", "condcov"], "did you mean 'condconv'"),
        (["convert", "test_resnet", "--share", "blocks"], "no way to share"),
        (["convert", "test_resnet", "--num-experts", "0"], "must be at least 1"),
        ([*ODCONV, "norm"], "options='norm' is not of the form NAME=VALUE"),
        ([*ODCONV, "reduction=many"], "reduction='many' is no whole number"),
        ([*ODCONV, "norms=layer"], "did you mean 'norm'"),
        ([*ODCONV, "norm=group"], "norm='group' must be one of"),
        (["convert"], "model"),
    ],
)
def test_what_cannot_be(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.err.count("\n") == 1


def test_share_words() -> None:
    assert parse_share(["block"]) == "block" and parse_share(["none"]) is None and parse_share(["3"]) == 3
    assert parse_share(["early=blocks.[01]", "late=blocks.[23]"]) == {"early": "blocks.[01]", "late": "blocks.[23]"}
