"""`condconv models`."""

from __future__ import annotations

import pytest

from condconv.cli.main import main
from condconv.models import list_models


def test_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:]] == list_models()
    line = next(line for line in out.splitlines() if line.startswith("condconv_efficientnet_b0_4e "))
    assert line.split()[1:4] == ["condconv", "4", "published"]


def test_lists_what_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "condconv_*resnet*"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["network", "condconv_resnet50"]
    assert main(["models", "condconv*", "--pretrained"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_nothing_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "condconv_resnet5"]) == 2
    assert "did you mean 'condconv_resnet50'" in capsys.readouterr().err
    assert main(["models", "--pretraind"]) == 2
    assert "did you mean '--pretrained'" in capsys.readouterr().err
