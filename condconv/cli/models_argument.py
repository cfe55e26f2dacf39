"""What `convert` and `count` share: a network named on the command line, and the size of its input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from condconv.cli.parser import Parser
from condconv.errors import ArgumentError, argument_error

_SIZE = re.compile(r"\d+(x\d+)*")


def add_model(parser: Parser, kinds: str = "a zoo or timm name, or a folder written by save_pretrained") -> None:
    """Add the arguments that name a network and its input; `kinds` says what may be named."""
    parser.add_argument("model", type=str, help=kinds)
    parser.add_argument(
        "--input-size", type=str, default=None, metavar="CxHxW", help="the network's own where left out"
    )
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")


def load_model(name: str, **arguments: Any) -> nn.Module:
    """Return the network called `name`, or saved in the folder of that name.

    Raises:
        ArgumentError: no such network or folder; arguments together with a folder.
    """
    from condconv import models

    given = {key: value for key, value in arguments.items() if value}
    if Path(name).is_dir():
        if given:
            rule = "is for networks that are made here"
            raise argument_error(name, next(iter(given)), next(iter(given.values())), rule, "leave it out")
        return models.from_pretrained(name)
    if "/" in name or "\\" in name:
        raise ArgumentError(f"{name}: no such folder; pass a folder written by save_pretrained, or a network's name")
    return models.create_model(name, **given)


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
