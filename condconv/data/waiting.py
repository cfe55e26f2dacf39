"""An end to all waiting, for what has no time limit of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

T = TypeVar("T")


def within(seconds: float, action: Callable[[], T]) -> T:
    """Return what `action` returns, or raise what it raises; `TimeoutError` where it takes longer.

    It then goes on in a thread of its own, which ends with the process at the latest.
    """
    outcome: list[Any] = []

    def act() -> None:
        try:
            outcome.append(action())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    found: T = outcome[0]
    return found


@contextmanager
def closed_aside(file: IO[bytes]) -> Iterator[None]:
    """Close a file at the end of the block, without waiting for a read in it that was given up and goes on."""
    try:
        yield
    finally:
        threading.Thread(target=file.close, daemon=True).start()
