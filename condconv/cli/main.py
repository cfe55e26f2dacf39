"""`condconv VERB …`: finds the verb, and turns every error into one line and an exit code.

Exit codes: 0 done; 2 an error, said in one line; 130 after Ctrl-C; 141 where the output is
closed. A traceback (exit code 1) is a defect here.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from condconv import __version__
from condconv.errors import CondConvError
from condconv.registry import unknown_name_message

_LONGEST = 20_000
"""Letters of a message; a value of megabytes is cut."""

VERBS = {
    "train": "train a conditional network beside its static twins",
    "recipes": "list what there is to train with one command",
    "lr-find": "sweep the learning rate and suggest one",
    "sweep": "run a study: many trainings, one table",
    "eval": "evaluate a network: accuracy by class, confusions, mistakes",
    "predict": "run a network on images, folders and shards",
    "data": "list what is wrong in annotations",
    "shard": "turn an image folder into tar shards",
    "models": "list the networks",
    "convert": "plan a conversion, print it, and carry it out",
    "compress": "make a network's file small, as far as its score allows",
    "export": "write the file of a runtime, and compare it",
    "count": "count multiply-adds and parameters",
    "benchmark": "time and memory beside the static twin and timm",
    "analyze": "report what the experts do",
    "completion": "complete commands and options in a shell",
    "doctor": "say what is installed and what this machine can run",
}
"""Verb → one line of help. `condconv.cli.<verb>` has `run(arguments) -> exit code`, and is imported when it is used; a
hyphen is an underscore there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code. With `--debug` errors keep their traceback."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it is for Python to close)
        elif isinstance(stream, io.TextIOWrapper):  # a name may have letters that the terminal has not
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except BrokenPipeError:  # whoever read the output has left
        _drop_output()
        return 128 + signal.SIGPIPE


def _run(words: Sequence[str]) -> int:
    debug = "--debug" in words
    try:
        code = _call(words)
        sys.stdout.flush()  # here, where a full disk can still be said
        return code
    except CondConvError as error:
        if debug:
            raise
        return fail(str(error), 2)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("condconv"):
            raise
        return fail(
            f"'condconv {words[0]}' needs the package {error.name!r}; install it with: pip install 'condconv[all]'", 2
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        if debug:
            raise
        if error.filename is None:
            _drop_output()
        return fail(f"{error.filename or 'the output'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return fail("stopped", 130)


def _call(words: Sequence[str]) -> int:
    """The exit code of a verb, or of what is said without one."""
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"condconv {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        kind = "option" if verb.startswith("-") else "command"
        return fail(unknown_name_message(kind, verb, VERBS), 2)
    try:
        return int(importlib.import_module(f"condconv.cli.{verb.replace('-', '_')}").run(rest))
    except SystemExit:  # after its --help
        sys.stdout.flush()
        raise


def _drop_output() -> None:
    """Let what Python still writes at its end go nowhere."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def usage() -> str:
    """What `condconv --help` prints."""
    lines = [f"  {verb:<10} {text}" for verb, text in VERBS.items()]
    return "\n".join(["usage: condconv COMMAND [options]   (condconv COMMAND --help lists them)", "", *lines])


def fail(message: str, code: int) -> int:
    """Print one line to standard error and return the exit code."""
    shown = message if len(message) < _LONGEST else f"{message[:_LONGEST]}…"
    print(f"error: {' '.join(shown.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
