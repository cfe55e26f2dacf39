"""Where output goes: a terminal of other letters, a full disk, a reader that has left, or nowhere."""

from __future__ import annotations

import io
import os
import sys

import pytest

from condconv.cli.main import main

WORDS = pytest.mark.parametrize("words", [["--help"], ["--version"], ["recipes"], ["recipes", "--help"]], ids=" ".join)
Capture = pytest.CaptureFixture[str]


def code_of(words: list[str]) -> int:
    """The exit code of the command; a verb's --help leaves with its own."""
    try:
        return main(words)
    except SystemExit as leaving:
        return int(leaving.code or 0)


@WORDS
def test_a_full_disk_is_said(words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:  # to close it is what Python does at its end
        monkeypatch.setattr(sys, "stdout", full)
        assert code_of(words) == 2
    assert capsys.readouterr().err == "error: the output: No space left on device\n"


@WORDS
def test_a_reader_that_has_left(words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert code_of(words) == 141
    assert capsys.readouterr().err == ""


@WORDS
def test_a_closed_output_takes_nothing(words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert code_of(words) == 0 and capsys.readouterr().err == ""
    sys.stdout.close()


def test_closed_errors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["nonsense"]) == 2 and main(["count", "nonsense"]) == 2
    sys.stdout.close(), sys.stderr.close()


@pytest.mark.parametrize("words", [["count", "Äffin \U0001f408"], ["Äffin"]], ids=ascii)
def test_a_terminal_without_the_letters(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.BytesIO()
    with io.TextIOWrapper(said, "ascii", write_through=True) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(words) == 2
        assert said.getvalue().startswith(b"error: ") and rb"\xc4ffin" in said.getvalue()
