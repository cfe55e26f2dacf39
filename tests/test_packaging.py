"""What leaves the checkout: the sdist builds, the wheel has everything, and both agree on torch and version."""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import condconv

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")

ROOT = Path(__file__).parent.parent
Run = Callable[..., str]
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command away from the checkout, without its path, and return what it prints."""
    outside = tmp_path_factory.mktemp("outside")

    def run(*command: str | Path, **variables: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=outside, env={**inherited, **variables}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """The sdist of a clean clone, unpacked."""
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("sdist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, clone)
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", dist, clone)
    (packed,) = dist.iterdir()
    with tarfile.open(packed) as archive:
        archive.extractall(dist, filter="data")
    return dist / packed.name.removesuffix(".tar.gz")


@pytest.mark.slow
def test_the_sdist_has_everything(unpacked: Path) -> None:
    packed = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} <= packed
    assert {"LICENSE", "README.md", "CHANGELOG.md", *data_files()} <= packed
    assert not [name for name in packed if name.endswith(".so")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("native", [False, True], ids=["pure", "native"])
def test_a_wheel_of_the_sdist_serves_where_there_is_no_compiler(
    native: bool, unpacked: Path, run: Run, tmp_path: Path
) -> None:
    if native and (shutil.which("c++") is None or platform.machine() != "x86_64"):
        pytest.skip("the operator is built by a C++ compiler, for x86-64")
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, unpacked)
    run(*build, CONDCONV_PURE="0" if native else "1")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as contents:
        installed = set(contents.namelist())
    assert data_files() <= installed
    assert not [name for name in installed if name.startswith(("tests/", "benchmarks/", "scripts/", "csrc/"))]
    assert any(name.endswith(".so") for name in installed) == native
    assert re.match(rf"condconv-{re.escape(condconv.__version__)}-py3-none-{'' if native else 'any'}", wheel.name)

    # The environment's torch, without its condconv: paths that a .pth file names read no .pth files of their own.
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=True)
    paths = {"base": str(fresh), "platbase": str(fresh)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    python = Path(sysconfig.get_path("scripts", "venv", paths)) / "python"
    no_compiler = str(python.parent)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, PATH=no_compiler)
    smoke_test = shutil.copy(ROOT / "scripts" / "smoke_test.py", tmp_path)
    said = run(python, smoke_test, *(["--native"] if native else []), PATH=no_compiler)
    assert str(site) in said and ("operator none" in said) != native
