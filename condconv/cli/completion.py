"""`condconv completion`: a script that completes verbs and options in a shell."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from condconv.cli.parser import Parser
from condconv.errors import ArgumentError

SHELLS = ("bash", "zsh", "tcsh")


def make_parser() -> Parser:
    """The shell."""
    parser = Parser(
        prog="condconv completion",
        description='Print a script that completes commands and options; in bash: eval "$(condconv completion bash)"',
    )
    parser.add_argument("shell", type=str, choices=list(SHELLS), help=f"one of {', '.join(SHELLS)}")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print the script."""
    settings = make_parser().parse_args(list(arguments))
    try:
        import shtab
    except ImportError:
        raise ArgumentError("completion needs the package shtab; install it with: pip install shtab") from None
    print(shtab.complete(every_verb(), settings.shell))
    return 0


def every_verb() -> argparse.ArgumentParser:
    """One parser with a subparser for each verb, as shtab reads it."""
    from condconv.cli.main import VERBS

    parser = argparse.ArgumentParser(prog="condconv")
    verbs = parser.add_subparsers(dest="verb")
    for verb, text in VERBS.items():
        own = verbs.add_parser(verb, help=text)
        module = importlib.import_module(f"condconv.cli.{verb.replace('-', '_')}")
        for action in module.make_parser()._actions if hasattr(module, "make_parser") else ():
            if action.help == argparse.SUPPRESS or any("_" in option for option in action.option_strings):
                continue  # jsonargparse's own
            _copy(own, action)
    return parser


def _copy(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
    """An argument of the same name, so far as completion needs it."""
    if "--help" in action.option_strings:
        return
    words = {"help": action.help, "metavar": action.metavar, "choices": action.choices}
    given = {name: value for name, value in words.items() if value is not None}
    if action.option_strings:
        flag = action.nargs == 0 or "--no-" in " ".join(action.option_strings)
        if flag:
            parser.add_argument(*action.option_strings, action="store_true", help=action.help)
        else:
            parser.add_argument(*action.option_strings, nargs=action.nargs, **given)  # type: ignore[arg-type]
    else:
        parser.add_argument(action.dest, nargs=action.nargs, **given)  # type: ignore[arg-type]
