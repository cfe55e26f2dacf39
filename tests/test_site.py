"""The site: every page is in its navigation, every public name in its reference, and it builds without a warning."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.test_docs import blocks, commands

ROOT = Path(__file__).parent.parent


class Settings(yaml.SafeLoader):
    """mkdocs.yml has values from the environment, which matter to no test."""


Settings.add_constructor("!ENV", lambda loader, node: "")


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    pytest.importorskip("mkdocs", reason="pip install 'condconv[docs]'")
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [leaf for child in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(child)]


def test_every_page_is_in_the_navigation_once(pages: ModuleType) -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Settings)
    written = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(leaves(settings["nav"])) == sorted([*written, *pages.PROJECT])
    assert settings["strict"]


def test_the_reference_has_what_packages_export(pages: ModuleType) -> None:
    packages = pages.public_packages()
    assert "condconv.models" in packages
    for name, names in packages.items():
        assert set(names) == set(importlib.import_module(name).__all__)


@pytest.mark.parametrize(
    ("page", "target", "found"),
    [
        ("analysis.md", "../benchmarks/results/analysis_cost.csv", "benchmarks/results/analysis_cost.csv"),
        ("tutorials/convert.md", "../conversion.md", "conversion.md"),
        ("when.md", "../CONTRIBUTING.md", "project/contributing.md"),
        ("project/security.md", "docs/reliability.md", "reliability.md"),
        ("when.md", "nowhere.md", None),
    ],
)
def test_links_lead_to_the_files_place_in_the_site(
    pages: ModuleType, page: str, target: str, found: str | None
) -> None:
    assert pages.place(page, target) == found


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorials_notebook_has_the_cells_that_the_pages_test_executes(pages: ModuleType, page: Path) -> None:
    made = json.loads(pages.notebook(page.read_text(encoding="utf-8")))
    assert made["nbformat"] == 4 and made["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    code = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "code"]
    shell = [line[1:].partition("  #")[0] for cell in code for line in cell.splitlines() if line.startswith("!")]
    assert [cell for cell in code if cell[0] != "!"] == [block.strip() for block in blocks(page, "python")]
    assert shell == commands(page)
    text = "\n".join(cell["source"] for cell in made["cells"] if cell["cell_type"] == "markdown")
    assert text.startswith("# ") and "](" not in text.replace("](https:", "")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(pages: ModuleType, tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    inventory = zlib.decompress((tmp_path / "site" / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    listed = {line.split(" ")[0] for line in inventory.splitlines()}
    missing = {f"{package}.{name}" for package, names in pages.public_packages().items() for name in names} - listed
    assert not missing
    for tutorial in (ROOT / "docs" / "tutorials").glob("*.md"):
        assert (tmp_path / "site" / "tutorials" / f"{tutorial.stem}.ipynb").is_file()
