from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch

from condconv.cli import doctor
from condconv.cli.main import main
from condconv.execution import native, strategies


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only compiler of this machine, in a folder that is the whole PATH."""
    found = tmp_path / "g++"
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return found


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator was not built."""
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "built", lambda: False)
    monkeypatch.setattr(native, "load_error", lambda: "it was never built")


def test_doctor_reports_versions_threads_and_what_auto_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert lines["torch"] == importlib.metadata.version("torch")
    assert lines["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert lines["cpu"].removeprefix("features").split() == native.cpu_features()
    for kind, chosen in doctor.choices():
        assert kind and all(part.split(" at ")[0] in strategies for part in chosen.split(", "))


def test_a_missing_operator_is_an_error_where_there_is_a_compiler(
    compiler: Path, missing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "missing (it was never built); the torch strategies serve" in out
    assert str(compiler) in out and "pip install --force-reinstall" in out


def test_a_missing_operator_is_no_error_without_a_compiler(
    compiler: Path, missing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler.unlink()
    assert main(["doctor"]) == 0
    assert "none (CXX, c++, g++, clang++)" in capsys.readouterr().out


def test_a_built_operator_is_named_with_its_instructions(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "built", lambda: True)
    monkeypatch.setattr(native, "instruction_set", lambda: "avx2")
    monkeypatch.setattr(doctor, "choices", lambda: iter([("dense", "native")]))
    assert main(["doctor"]) == 0
    assert "built, uses avx2" in capsys.readouterr().out


def test_an_operator_that_this_machine_cannot_use_is_not_built_again(
    compiler: Path, missing: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "built", lambda: True)
    monkeypatch.setattr(native, "load_error", lambda: "this CPU has no AVX2")
    assert main(["doctor"]) == 0
    assert "built, but not used (this CPU has no AVX2); the torch strategies serve" in capsys.readouterr().out


def test_cxx_names_the_compiler(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = compiler.with_name("my-compiler")
    compiler.rename(other)
    assert doctor.find_compiler() is None
    monkeypatch.setenv("CXX", "my-compiler -march=native")
    assert doctor.find_compiler() == str(other)


def test_doctor_takes_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--hlep"]) == 2
    assert "unknown option '--hlep'; did you mean '--help'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--help"])
