"""What leaves the checkout: the sdist builds, the wheel has everything, and both agree on torch and version."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import condconv

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")

ROOT = Path(__file__).parent.parent
SOURCES = (
    "condconv", "csrc", "CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml",
    "setup.py",
)  # fmt: skip


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def constants_of_setup() -> dict[str, Any]:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in found}


def data_files() -> set[str]:
    """The files of the package that are no code, from its root."""
    files = {path for path in (ROOT / "condconv").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix not in (".py", ".so")}


def test_every_data_file_is_package_data() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package, patterns in settings()["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert found == data_files()


def test_every_source_of_the_operator_is_compiled_or_watched() -> None:
    constants = constants_of_setup()
    listed = {*(f"{name}.cpp" for name in constants["SOURCES"]), *constants["HEADERS"]}
    assert listed == {path.name for path in (ROOT / "csrc").iterdir()}


def test_build_runtime_makefile_and_message_name_the_same_oldest_torch() -> None:
    project = settings()
    (runtime,) = project["project"]["dependencies"]
    assert runtime in project["build-system"]["requires"]
    assert f"'{runtime}'" in (ROOT / "Makefile").read_text(encoding="utf-8")
    oldest = runtime.removeprefix("torch>=")
    assert f"torch {oldest} or later" in (ROOT / "condconv" / "operators.py").read_text(encoding="utf-8")
    target = re.search(r"TORCH_TARGET_VERSION\", \"0x(..)(..)", (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert target is not None
    assert [int(part, 16) for part in target.groups()] <= [int(part) for part in oldest.split(".")]


def test_the_version_is_written_in_one_place() -> None:
    assert settings()["project"]["dynamic"] == ["version"]
    for name in ("pyproject.toml", "setup.py", "CITATION.cff", "mkdocs.yml"):
        assert condconv.__version__ not in (ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.slow
def test_sdist_and_wheel_serve_away_from_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "clone" / name)
    for path in (tmp_path / "clone").rglob("*.so"):
        path.unlink()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "clone")
    (sdist,), (wheel,) = (list((tmp_path / "dist").glob(kind)) for kind in ("*.tar.gz", "*.whl"))
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} <= packed
    assert {"LICENSE", "README.md", "CHANGELOG.md", *data_files()} <= packed
    with zipfile.ZipFile(wheel) as contents:
        installed = set(contents.namelist())
    assert data_files() <= installed
    assert not [name for name in installed if name.startswith(("tests/", "benchmarks/", "scripts/", "csrc/"))]
    compiled = [name for name in installed if name.endswith(".so")]
    assert bool(compiled) == (shutil.which("c++") is not None)
    assert re.match(rf"condconv-{re.escape(condconv.__version__)}-py3-none-", wheel.name)

    # The environment's torch, without its condconv: paths that a .pth file names read no .pth files of their own.
    venv.create(tmp_path / "fresh", with_pip=True)
    paths = {"base": str(tmp_path / "fresh"), "platbase": str(tmp_path / "fresh")}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    python = Path(sysconfig.get_path("scripts", "venv", paths)) / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    shutil.copy(ROOT / "scripts" / "smoke_test.py", tmp_path)
    said = run(python, "smoke_test.py", *(["--native"] if compiled else []))
    assert str(site) in said
