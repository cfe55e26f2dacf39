"""The checks of arguments: what a public function is handed is looked at before anything is done with it.

Each returns the value as the plain type that it stands for, and raises an `ArgumentError` that names place, argument,
value, rule and remedy. An integer is whatever `operator.index` takes (numpy's and torch's scalars too), but no bool.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import argument_error

LARGEST = 2**31 - 1
"""Of every size and count: the product of any two of them fits the 64 bits that torch and the native operator have."""


MOST_ELEMENTS = 2**59
"""Of a tensor: with the 16 bytes of a complex number each, they would be too many bytes to count."""

MOST_EXPERTS = 2**20
"""Of a layer: each has a number of Python's in what its coefficients are where nothing is mixed."""


def integer(where: str, name: str, value: Any, minimum: int, maximum: int = LARGEST) -> int:
    """Return `value` as an int between `minimum` and `maximum`, both included."""
    found = _index(value)
    if found is None:
        raise argument_error(where, name, value, f"must be an integer of at least {minimum}", "pass one")
    if not minimum <= found <= maximum:
        limit = f"at least {minimum}" if found < minimum else f"at most {maximum}"
        raise argument_error(where, name, value, f"must be {limit}", "pass another one")
    return found


def experts(where: str, value: Any) -> int:
    """Return a number of experts."""
    return integer(where, "num_experts", value, 1, MOST_EXPERTS)


def integers(where: str, name: str, value: Any, length: int, minimum: int) -> tuple[int, ...]:
    """Return one integer, repeated, or a sequence of `length` integers, as a tuple."""
    single = _index(value)
    values = [single] * length if single is not None else list(value) if isinstance(value, Sequence) else []
    found = tuple(_index(each) if not isinstance(value, str) else None for each in values)
    if len(found) != length or any(each is None or not minimum <= each <= LARGEST for each in found):
        large = all(each is not None and each >= minimum for each in found)
        limit = f"at most {LARGEST}" if large and len(found) == length else f"at least {minimum}"
        rule = f"must be an integer of {limit}, or {length} of them"
        raise argument_error(where, name, value, rule, f"pass one number, or one for each of {length} dimensions")
    return found  # type: ignore[return-value]


def number(
    where: str,
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    remedy: str,
) -> float:
    """Return a finite real number within the limits as a float; `above` and `below` exclude their own value."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # an int may be too long
            found = math.nan
        if math.isfinite(found) and minimum <= found <= maximum and above < found < below:
            return found
    limits = [
        f"{text} {limit:g}"
        for text, limit in (("at least", minimum), ("above", above), ("at most", maximum), ("below", below))
        if math.isfinite(limit)
    ]
    rule = f"must be a number, {' and '.join(limits)}" if limits else "must be a finite number"
    raise argument_error(where, name, value, rule, remedy)


def probability(where: str, name: str, value: Any) -> float:
    """Return a number in [0, 1)."""
    return number(where, name, value, minimum=0, below=1, remedy="pass 0 to switch it off")


def boolean(where: str, name: str, value: Any) -> bool:
    """Return True or False; nothing that is merely true or false in a condition."""
    if not isinstance(value, bool):
        raise argument_error(where, name, value, "must be True or False", "pass one of the two")
    return value


def choice(where: str, name: str, value: Any, known: Sequence[str]) -> str:
    """Return one of some words."""
    if not isinstance(value, str) or value not in known:
        raise argument_error(where, name, value, f"must be one of {', '.join(known)}", f"pass {known[0]!r}")
    return value


def text(where: str, name: str, value: Any) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise argument_error(where, name, value, "must be text", "pass a string")
    return value


def path(where: str, name: str, value: Any) -> Path:
    """Return a path of text or of `os.PathLike`; one that no file system can have is refused."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise argument_error(where, name, value, "must be a path", "pass a string or a pathlib.Path")
    return Path(value)


def a_module(where: str, name: str, value: Any, kind: type[nn.Module] = nn.Module) -> Any:
    """Return a module, or one of a kind."""
    if not isinstance(value, kind):
        what = "torch.nn.Module" if kind is nn.Module else kind.__name__
        raise argument_error(where, name, type(value).__name__, f"is not a {what}", "pass one")
    return value


def a_tensor(where: str, name: str, value: Any) -> Tensor:
    """Return a tensor (or what stands for one while FX traces)."""
    if not isinstance(value, Tensor | torch.fx.Proxy):
        raise argument_error(where, name, type(value).__name__, "is not a tensor", "pass a torch.Tensor")
    return value  # type: ignore[return-value]


def _index(value: Any) -> int | None:
    """The integer that a value stands for; None where it is none, or a bool."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and (value.dtype == torch.bool or value.dim() > 0)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
