"""The settings of a training run on the command line: a flag for each field of `TrainConfig`, recipes, YAML files."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import ActionYesNo

from condconv.cli.parser import Parser
from condconv.errors import ArgumentError
from condconv.reading import parse_yaml, read_text
from condconv.recipes import load_recipe
from condconv.runs.config import SECTIONS, TrainConfig
from condconv.runs.setting_rules import flag

_FORMER_FLAGS = {"--upcycle-from": "--pretrained"}
_NAMES = tuple(field.name for field in fields(TrainConfig))


def present_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments with former flags under their present names, which are said."""
    present = []
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if (successor := _FORMER_FLAGS.get(name)) is not None:
            print(f"notice: {name} is now {successor}", file=sys.stderr)
            name = successor
        present.append(f"{name}{sign}{value}")
    return present


def add_settings(parser: Parser) -> None:
    """Add a flat flag for each field of `TrainConfig`, and what goes with them: --config, --print-config, --debug."""
    parser.add_argument("--config", action="config", help="YAML file with the same names as the flags")
    hints = get_type_hints(TrainConfig)
    group: Any = parser
    for field in fields(TrainConfig):
        group = parser.add_argument_group(SECTIONS[field.name]) if field.name in SECTIONS else group
        default = None if field.default is MISSING else field.default
        name, text = f"--{flag(field.name)}", field.metadata["help"]
        if hints[field.name] is bool:
            group.add_argument(name, action=ActionYesNo(no_prefix="no-"), default=default, help=text)
        else:
            # None stands for "not given" only as a default, so `int | None` is an int on the command line.
            kind = next(kind for kind in (get_args(hints[field.name]) or (hints[field.name],)) if kind is not NoneType)
            alone = field.metadata["without_value"]
            optional = {} if alone is None else {"nargs": "?", "const": alone}
            group.add_argument(name, type=kind, default=default, help=text, **optional)
    parser.add_argument(
        "--print-config", action="store_true", default=False, help="print the settings as YAML and stop"
    )
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")


def parse(parser: Parser, arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is about this call alone, and those fields of `TrainConfig` that flags or the file of --config name.

    Raises:
        ArgumentError: an unknown option or setting.
    """
    for path in _config_files(arguments):
        try:
            parse_yaml(read_text(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArgumentError(f"--config {path}: not a readable file of settings ({reason})") from error
    found = vars(parser.parse_args(list(arguments), defaults=False))
    calls = {**vars(parser.get_defaults()), **found}
    given = {name: found[name] for name in _NAMES if found.get(name) is not None}
    return {name: value for name, value in calls.items() if name not in (*_NAMES, "config")}, given


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of `TrainConfig`: what is given wins over its recipe, and that over the defaults.

    Raises:
        ArgumentError: an unknown recipe.
    """
    defaults = {field.name: None if field.default is MISSING else field.default for field in fields(TrainConfig)}
    recipe = given.get("recipe")
    return {**defaults, **({} if recipe is None else load_recipe(recipe).settings), **given}


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    """The files of --config, to be looked at before jsonargparse writes their aliases out."""
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if word == "--config" and following:
            yield Path(following)
        elif word.startswith("--config="):
            yield Path(word.removeprefix("--config="))
