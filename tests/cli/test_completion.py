"""What a shell completes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from condconv.cli.completion import every_verb
from condconv.cli.main import VERBS, main


def test_every_verb_with_its_options() -> None:
    (verbs,) = (action for action in every_verb()._actions if action.choices is not None)
    assert list(verbs.choices) == list(VERBS)
    train = verbs.choices["train"]._option_string_actions
    assert {"--data", "--pretrained", "--no-report", "--resume", "--config"} <= train.keys()
    assert not any("_" in option for option in train)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    ask = (
        f'source {script}; COMP_WORDS=(condconv train --early); COMP_CWORD=2; COMP_LINE="condconv train --early"; '
        'COMP_POINT=22; $(complete -p condconv | grep -o "\\-F [^ ]*" | cut -c4-) condconv --early train; '
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert "--early-stopping" in done.stdout, done.stderr


def test_other_shells_and_a_missing_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["completion", "fishy"]) == 2
    monkeypatch.setitem(sys.modules, "shtab", None)
    capsys.readouterr()
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == "error: completion needs the package shtab; install it with: pip install shtab\n"
