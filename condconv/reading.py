"""How files from outside are read: regular files of a bounded size, JSON and YAML of a bounded depth and number.

What is wrong is an `OSError` or a `ValueError` with a reason that can be put into a message.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

import yaml

from condconv.limits import limit

_DEEPEST = 100


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading; `OSError` for a pipe, device or folder, which could never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, bound: str) -> bytes:
    """The bytes of a regular file that is no larger than the limit named `bound`; `OSError` otherwise."""
    most = limit(bound)
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        reason = f"more than {most} bytes, which is the limit; set CONDCONV_{bound.upper()} to raise it"
        raise OSError(errno.EFBIG, reason, str(path))
    return data


def read_text(path: Path, most: str = "max_text_bytes") -> str:
    """A UTF-8 text file, at most as large as that limit; `OSError`, or `ValueError` where it is not UTF-8."""
    return read_file(path, most).decode("utf-8")


def parse_json(text: str) -> Any:
    """JSON; `ValueError` for anything else, also where it is nested too deeply or a number is too long."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Plain YAML; `ValueError` for anything else, and for more than `max_yaml_nodes` with all aliases written out."""
    try:
        _require_shallow(text)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            size = _size(node, {})
            if size > limit("max_yaml_nodes"):
                most = limit("max_yaml_nodes")
                raise ValueError(f"its aliases stand for more nodes than CONDCONV_MAX_YAML_NODES={most}")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("an alias stands for what it is in") from None


def _require_shallow(text: str) -> None:
    """Look at the text event by event: the whole of a deep one takes the parser long."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes a node stands for, aliases written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        children = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]
