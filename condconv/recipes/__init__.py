"""Recipes: one short YAML file for each published or reproduced training, with its source and its recorded outcome.

A file holds its differences from a `base:` (a file in `bases/`, which may have a base itself): settings of
`condconv train` by their names, and what describes it:

    base: dynamic_mobilenetv2
    model: dynamic_mobilenetv2_100
    dropout: 0.2
    source: where the settings come from
    outcome: what came out here, or "not run here"

A base may also say the `dataset:`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from condconv.errors import ArgumentError, UnknownNameError
from condconv.reading import parse_yaml, read_text
from condconv.registry import unknown_name_message
from condconv.runs.config import TrainConfig

FOLDER = Path(__file__).parent
_ABOUT = ("base", "dataset", "source", "outcome")
# What a run is called and where it goes is no part of a recipe.
_SETTINGS = frozenset(field.name for field in fields(TrainConfig)) - {"recipe", "name", "out", "device"}


@dataclass(frozen=True)
class Recipe:
    """Settings by name, those of its bases included, and where they come from."""

    name: str
    settings: Mapping[str, Any]
    dataset: str
    source: str
    outcome: str

    @property
    def network(self) -> str:
        """The network that is trained; a static backbone with what it is converted to."""
        model, variant = str(self.settings["model"]), str(self.settings.get("variant", "none"))
        return model if model.startswith(("condconv_", "dynamic_")) else f"{model}, {variant}"


def list_recipes(folder: Path = FOLDER) -> list[str]:
    """Names of all recipes."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_recipe(name: str, folder: Path = FOLDER) -> Recipe:
    """The recipe of that name.

    Raises:
        UnknownNameError: there is none; the message lists the closest names.
        ArgumentError: its file, or one of its bases, has an unknown key or a value of the wrong kind, or lacks what
            describes it; or a base does not exist or leads back to itself.
    """
    if name not in list_recipes(folder):
        message = unknown_name_message("recipe", name, list_recipes(folder))
        raise UnknownNameError(f"{message}; `condconv recipes` lists them")
    path = folder / f"{name}.yaml"
    merged: dict[str, Any] = {}
    chain = [path]
    while True:
        found = _read(chain[-1])
        merged = found | merged
        base = found.get("base")
        if base is None:
            break
        chain.append(_base(chain, base))
    missing = [key for key in ("dataset", "source", "outcome") if key not in merged]
    if missing:
        raise ArgumentError(f"{path}: neither it nor its bases say {' and '.join(missing)}")
    settings = {key: value for key, value in merged.items() if key not in _ABOUT}
    return Recipe(name, settings, merged["dataset"], merged["source"], merged["outcome"])


def _base(chain: list[Path], base: str) -> Path:
    folder = chain[0].parent / "bases"
    path = folder / f"{base}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in folder.glob("*.yaml"))
        raise ArgumentError(f"{chain[-1]}: {unknown_name_message('base', base, known)}")
    if path in chain:
        circle = " → ".join(each.stem for each in [*chain[chain.index(path) :], path])
        raise ArgumentError(f"{chain[-1]}: its base leads back to itself: {circle}")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_yaml(read_text(path))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(found, dict):
        raise ArgumentError(f"{path}: holds no settings; expected lines of the form 'epochs: 300'")
    hints = get_type_hints(TrainConfig)
    for key, value in found.items():
        if key not in _SETTINGS and key not in _ABOUT:
            raise ArgumentError(f"{path}: {unknown_name_message('key', key, sorted(_SETTINGS) + list(_ABOUT))}")
        hint = str if key in _ABOUT else hints[key]
        kind = next(kind for kind in (get_args(hint) or (hint,)) if kind is not NoneType)
        if not _is_a(value, kind):
            hint = "; 1e-5 is text in YAML, write 0.00001" if kind is float else ""
            raise ArgumentError(f"{path}: {key}: {value!r} is of another kind than {kind.__name__}{hint}")
    return found


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
