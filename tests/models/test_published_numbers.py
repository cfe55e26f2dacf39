"""The published-versus-counted table: generated, up to date, and within its stated tolerances."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "counts.py"
FAST = ("condconv_mobilenetv2_050", "condconv_efficientnet_b0_4e", "condconv_mnasnet_a1", "dynamic_mobilenetv2_035")


def _counts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_counts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


counts = _counts()
PUBLISHED = {line["name"]: line for line in counts.read(counts.PUBLISHED)}
COUNTED = {line["name"]: line for line in counts.read(counts.COUNTS)}


def test_page_is_up_to_date() -> None:
    assert counts.PAGE.read_text(encoding="utf-8") == counts.page(PUBLISHED.values(), COUNTED.values())


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_committed_counts_are_what_is_counted_now(name: str) -> None:
    assert counts.counted(PUBLISHED[name]) == COUNTED[name]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name]["max_error_percent"]])
def test_multiply_adds_are_within_the_tolerance_of_the_published(name: str) -> None:
    tolerance = float(PUBLISHED[name]["max_error_percent"])
    assert tolerance <= (0.6 if "ssd" in name else 0.5)
    for published, counted in (("published_static_mmacs", "static_macs"), ("published_mmacs", "macs")):
        error = counts.error_percent(PUBLISHED[name][published], COUNTED[name][counted])
        assert error is None or abs(error) <= tolerance


def test_every_condconv_row_has_a_tolerance() -> None:
    assert all(line["max_error_percent"] for name, line in PUBLISHED.items() if name.startswith("condconv"))


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("condconv_efficientnet_b0_4e", "13.3"),
        ("condconv_efficientnet_b0_8e", "24.0"),
        ("condconv_efficientnet_b0_8e_depth", "39.7"),
        ("condconv_mobilenetv2_100", "27.5"),
        ("condconv_mobilenetv2_050", "15.5"),
    ],
)
def test_parameters_are_published_to_the_printed_digit(name: str, digits: str) -> None:
    assert f"{int(COUNTED[name]['params']) / 1e6:.1f}" == digits == PUBLISHED[name]["published_mparams"]


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in PUBLISHED.values()
        if line["name"].startswith(("odconv", "dcd", "kernel_warehouse")) and "budget=1/4" not in line["name"]
    ],
)
def test_parameters_of_the_successors_are_published_to_a_hundredth_of_a_million(line: dict[str, str]) -> None:
    assert abs(int(COUNTED[line["name"]]["params"]) / 1e6 - float(line["published_mparams"])) < 0.0101
