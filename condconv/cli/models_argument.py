"""What all verbs share that take a network: its name on the command line, and the size of its input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, argument_error

_SIZE = re.compile(r"\d+(x\d+)*")


KINDS = "a run folder, a folder of save_pretrained, or a network's name"


def add_model(parser: Parser) -> None:
    """Add the arguments that name a network and its input."""
    add_name(parser)
    parser.add_argument(
        "--input-size", type=str, default=None, metavar="CxHxW", help="the network's own where left out"
    )
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")


def add_name(parser: Parser, kinds: str = KINDS) -> None:
    """Add the arguments that name a network; `kinds` says what may be named."""
    parser.add_argument("model", type=str, help=kinds)
    parser.add_argument(
        "--network", type=str, default=None, metavar="NAME",
        help="of a run: conditional, static, widened (default: the first of them); conditional-best: its best epoch",
    )  # fmt: skip


def load_model(name: str, network: str | None = None, **arguments: Any) -> nn.Module:
    """Return the network called `name`, with fresh weights unless they are asked for; or that of a run or saved folder.

    Raises:
        CondConvError: no such network or folder; arguments together with a folder; `network` without a run.
    """
    from condconv.models import create_model
    from condconv.pretrained import from_pretrained

    given = {key: value for key, value in arguments.items() if value}
    if Path(name).expanduser().is_dir():
        if given:
            rule = "is for networks that are made here"
            raise argument_error(name, next(iter(given)), next(iter(given.values())), rule, "leave it out")
        return from_pretrained(name, network=network)
    if network is not None:
        rule = f"is of a run folder, which {name} is not"
        raise argument_error("command line", "--network", network, rule, "leave it out")
    if "/" in name or "\\" in name:
        raise ArgumentError(f"{name}: no such folder; pass a run folder or one of save_pretrained, or a network's name")
    return create_model(name, **given)


def input_size(text: str | None, model: nn.Module) -> tuple[int, ...]:
    """Return (C, *space) from "3x224x224"; None gives the size that the network was made for.

    Raises:
        ArgumentError: `text` is no size.
    """
    if text is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        return tuple(config.get("input_size") or (3, 224, 224))
    if not _SIZE.fullmatch(text):
        raise argument_error("command line", "--input-size", text, "is not a size", "write it as 3x224x224")
    return tuple(int(size) for size in text.split("x"))
