"""The house rules that a machine can check: one-way imports, a light import, a documented public surface."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import condconv

PACKAGE = Path(condconv.__file__).parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"


def floors() -> list[list[str]]:
    """The rows of the table of rooms in CONTRIBUTING.md: what is above imports nothing of what is below."""
    table = CONTRIBUTING.read_text(encoding="utf-8").partition("| room |")[2].partition("\n\n")[0]
    return [re.findall(r"`([a-z_]+)(?:\.py)?`", line.split("|")[1]) for line in table.splitlines()[2:]]


FLOOR_OF = {room: level for level, names in enumerate(floors()) for room in names}
SIBLINGS = {"routers", "banks", "execution"}  # never import one another
MAY_NEED = {
    "timm": {"models", "training", "benchmarking"},
    "torchvision": {"data", "detection", "tasks"},
    "pytorch_lightning": {"training"},
}


def rooms() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "condconv":
            names |= {f"condconv.{alias.name}" for alias in node.names if alias.name in FLOOR_OF}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_table_of_rooms_names_every_room_once() -> None:
    named = [room for names in floors() for room in names]
    assert sorted(named) == sorted({room_of(path) for path in rooms()})


@pytest.mark.parametrize("path", rooms(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "condconv" and rest and rest[0] != room:
            assert FLOOR_OF[rest[0]] <= FLOOR_OF[room], f"{room} must not import {rest[0]}, which is below it"
            assert not {rest[0], room} <= SIBLINGS, f"{room} and {rest[0]} are siblings"
        assert top not in MAY_NEED or room in MAY_NEED[top], f"{room} must not import {top}"


def test_importing_the_package_loads_torch_alone() -> None:
    heavy = "timm torchvision pytorch_lightning matplotlib jsonargparse rich sklearn safetensors onnx"
    code = f"import sys, condconv; print([m for m in {heavy.split()} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", condconv.__all__)
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(condconv, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if not member.startswith("_") and inspect.isfunction(value):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_public_surface_is_sorted_and_complete() -> None:
    assert condconv.__all__ == sorted(condconv.__all__) == dir(condconv)


@pytest.mark.parametrize("name", condconv._PACKAGES)
def test_packages_of_public_names_need_no_import_of_their_own(name: str) -> None:
    assert condconv.__getattr__(name) is importlib.import_module(f"condconv.{name}")


def test_the_stub_has_every_public_name() -> None:
    script = runpy.run_path(str(PACKAGE.parent / "scripts" / "stub.py"))
    text = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
    assert text == script["stub"](), "run `python scripts/stub.py`"


HANDLE_LAYERS = {
    "counting", "conversion", "tuning", "models", "training", "analysis", "inference", "evaluation", "runs", "studies",
    "routing_hooks", "benchmarking",
}  # fmt: skip
BANK_PARAMETERS = {"weight", "bias", "packed", "scale", "inner", "reduce", "expand"}
FORMS = {"Mixture", "Packed", "Kernels", "Static", "Scaled", "LowRank"}


@pytest.mark.parametrize("path", rooms(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_bank_answers_for_itself(path: Path) -> None:
    """Outside of banks (those in the variants' files too) nobody reads a bank's parameters or asks for a form's class.

    `ConditionalLayer.weight` and `.bias`, what users read, are the one exception.
    """
    if room_of(path) in ("banks", "execution", "lowered"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in BANK_PARAMETERS:
            of_a_bank = ast.unparse(node.value).endswith("bank")
            of_a_layer = ast.unparse(node.value) in ("layer", "conditional") and room_of(path) in HANDLE_LAYERS
            allowed = path == PACKAGE / "layers" / "base.py"
            assert allowed or not (of_a_bank or of_a_layer), f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            assert not asked & FORMS, f"line {node.lineno}: {ast.unparse(node)}"
