"""Every code block in the README and the docs runs as printed."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from tests.cli.runner import condconv, quick
from tests.processes import run_code

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def commands(page: Path) -> list[str]:
    lines = [line.split("  #")[0].strip() for text in blocks(page, "bash") for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def name_of(thing: object) -> str:
    return str(thing.relative_to(ROOT)) if isinstance(thing, Path) else str(thing)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path) -> None:
    prepare = "from tests.cli.runner import quick\nquick()\ndel quick"
    run = run_code("\n".join([prepare, *blocks(page, "python")]), cwd=tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name_of)
def test_shell_commands_run(page: Path, tmp_path: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":  # what it installs and trains is too much for a test: the target must exist
            run = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        else:
            assert words[0] == "condconv", f"{page.name}: {command!r} is neither make nor condconv"
            run = condconv(*words[1:], cwd=tmp_path, prepare=[quick])
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_have_a_language_that_is_checked(page: Path) -> None:
    languages = {name for name, _ in BLOCK.findall(page.read_text())}
    assert languages <= {"python", "bash", "text", "yaml"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("path", [p for p in (ROOT / "condconv").rglob("*.py") if ">>> " in p.read_text()], ids=name_of)
def test_examples_in_docstrings_run(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted and not found.failed
