"""Names → things: variants, strategies, routers and models are looked up by name in a `Registry`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from condconv.errors import ArgumentError, UnknownNameError

T = TypeVar("T")


def unknown_name_message(kind: str, name: object, known: Iterable[str], limit: int = 12) -> str:
    """Return "unknown KIND 'NAME'" with the closest known names, or the first `limit` of them where none is close."""
    choices = list(dict.fromkeys(known))
    close = difflib.get_close_matches(str(name), choices, n=3, cutoff=0.5)
    if close:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, close))}?"
    more = f" and {len(choices) - limit} more" if len(choices) > limit else ""
    return f"unknown {kind} {name!r}; known: {', '.join(choices[:limit]) or 'none'}{more}"


class Registry(Generic[T]):
    """A dictionary that refuses duplicates and answers an unknown name with the closest known ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str, thing: T) -> T:
        """Add `thing` under `name` and return it.

        Raises:
            ArgumentError: the name is taken.
        """
        if name in self._things:
            raise ArgumentError(f"{self.kind} {name!r} is already registered; choose another name")
        self._things[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        try:
            return self._things[name]
        except (KeyError, TypeError):
            raise UnknownNameError(unknown_name_message(self.kind, name, self._things)) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def names(self) -> list[str]:
        """Return the registered names in the order of their registration."""
        return list(self._things)
