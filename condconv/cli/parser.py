"""The parser of every verb: jsonargparse (flags, or the same names in a YAML file), with closest matches in its
errors.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from condconv.errors import ArgumentError
from condconv.registry import unknown_name_message

_UNKNOWN_OPTION = re.compile(r"[Uu]nrecognized arguments: (\S+)")
_UNKNOWN_KEY = re.compile(r"[Oo]ption '([^']+)' is not accepted")
_WRONG_TYPE = re.compile(r'Parser key "([^"]+)":.*Expected a <class \'(\w+)\'>.*?Got value: (\S+)', re.DOTALL)
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


class Parser(ArgumentParser):
    """Raises `ArgumentError` instead of printing its usage and leaving."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(exit_on_error=False, allow_abbrev=False, **arguments)

    def options(self) -> list[str]:
        """All long options of ours (jsonargparse's own have an underscore)."""
        return [
            option
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and "_" not in option
        ]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `ArgumentError`, with the closest options where one is unknown."""
        raise ArgumentError(self.explain(message)) from ex

    def explain(self, message: str) -> str:
        """The message in one line, with the closest options for an unknown one."""
        if found := _UNKNOWN_OPTION.search(message):
            if not found.group(1).startswith("-"):
                return f"unexpected argument {found.group(1)!r}; known options: {', '.join(self.options())}"
            return unknown_name_message("option", found.group(1).split("=")[0], self.options())
        if found := _UNKNOWN_KEY.search(message):
            names = [option.removeprefix("--").replace("-", "_") for option in self.options()]
            return unknown_name_message("setting", found.group(1), names)
        if found := _WRONG_TYPE.search(message):
            name, kind, value = found.groups()
            return f"--{name.replace('_', '-')}: {value} is not {_KINDS.get(kind, kind)}"
        return " ".join(message.split())
