"""Every flag of every verb × absurd values: an exit code and one line, never a traceback.

What is named does not exist, so that a value that is accepted ends in an error that is about something else. The counts
are printed with `pytest -s`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from condconv.cli.main import VERBS, main
from tests.reliability.counts import note

ABSURD = (
    "", " ", "²", "٣", "-3", "0", "2.5", "nan", "inf", "-inf", "1e400", "9" * 20, "9" * 5000, "text", "a\0b", "\udcff",
    "null", "true", "[]", "{}", "[1, 2", "&a [*a]", "*a", "!!python/object:os.system", "/", ".", "..", "~", "-", "--",
    "a" * 5000, "../../x", "%s", "\n", "\u202etxt", "NAME=(", "[", "(?:", "*", "\\",
)  # fmt: skip
USUAL = {
    "train": ["--data", "nowhere/at/all"], "lr-find": ["--data", "nowhere/at/all"], "recipes": [],
    "sweep": ["nowhere.yaml"], "eval": ["nowhere", "--data", "nowhere/at/all"], "predict": ["nowhere", "nothing.jpg"],
    "shard": ["nowhere"], "models": [], "convert": ["nowhere-at-all"], "count": ["nowhere-at-all"],
    "analyze": ["nowhere", "--data", "nowhere/at/all"], "export": ["nowhere-at-all", "--out", "net.onnx"],
    "compress": ["nowhere", "--data", "nowhere/at/all"],
    "benchmark": ["nowhere-at-all"],
}  # fmt: skip


def test_no_verb_is_left_out() -> None:
    assert set(USUAL) == set(VERBS) - {"completion", "data", "doctor"}  # which have no flags


def flags_of(verb: str) -> list[str]:
    parser = importlib.import_module(f"condconv.cli.{verb.replace('-', '_')}").make_parser()
    leave = ("--help", "--debug", "--print-config", "--resume")
    return [option for option in parser.options() if option not in leave]


def attack(verb: str, capsys: pytest.CaptureFixture[str], every: int) -> tuple[int, list[str]]:
    cells, problems = 0, []
    for flag in flags_of(verb):
        for value in ABSURD[cells % every :: every]:
            cells += 1
            words = [flag, value] if cells % 2 else [f"{flag}={value}"]
            try:
                code = main([verb, *USUAL[verb], *words])
            except BaseException as error:
                problems.append(f"{verb} {str(words)[:100]}: {type(error).__name__}: {str(error)[:200]}")
                continue
            said = capsys.readouterr().err.strip()
            if code not in (0, 2) or (code == 2 and (not said.startswith("error: ") or "\n" in said)):
                problems.append(f"{verb} {str(words)[:100]}: {code}, {said[:300]!r}")
    return cells, problems


@pytest.mark.slow
@pytest.mark.parametrize("verb", USUAL)
def test_absurd_values(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cells, problems = attack(verb, capsys, 1)
    with capsys.disabled():
        note("flags", verb, cells, len(problems))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("verb", USUAL)
def test_some_absurd_values(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, problems = attack(verb, capsys, 61)
    assert not problems, "\n".join(problems)
