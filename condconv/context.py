"""What holds for everything that runs inside a `with` block, and for nothing else: neither for other threads nor for
other tasks of the same event loop.

The values live in a context variable. A task that is started inside the block inherits them, a thread does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

from condconv.func_transforms import transformed

T = TypeVar("T")

TRACED = torch.__version__ >= "2.14"
"""Whether torch.compile traces context variables. An older one gets an attribute, which all threads see."""


_variables: list[ContextVar[tuple[object, ...]]] = []
"""Of all stacks."""
_entered: ContextVar[bool] = ContextVar("condconv blocks", default=False)
"""Whether one of them holds anything."""


def only_runs() -> bool:
    """Whether a forward pass is all that happens here: no gradient, trace, transform, cast, nor block of ours."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch._C._is_any_autocast_enabled():
        return False
    return not (
        _entered.get()
        or transformed()
        or torch._C._get_tracing_state() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


class ContextStack(Generic[T]):
    """The values whose blocks are entered, the innermost last.

    torch.compile traces `values()` and compiles again where they have changed.
    """

    def __init__(self, name: str) -> None:
        self._variable: ContextVar[tuple[T, ...]] = ContextVar(name, default=())
        _variables.append(self._variable)  # type: ignore[arg-type]
        self._attribute: tuple[T, ...] = ()

    def values(self) -> tuple[T, ...]:
        """What holds here, the innermost last; empty outside of all blocks."""
        if not TRACED and torch.compiler.is_compiling():
            return self._attribute
        return self._variable.get()

    @contextlib.contextmanager
    def holding(self, value: T) -> Iterator[T]:
        """Let a value hold inside the block."""
        before = self._variable.get()
        self.set((*before, value))
        try:
            yield value
        finally:
            # Not by a token: a generator that holds a block may be closed in another context than it began in.
            self.set(before)

    def set(self, values: tuple[T, ...]) -> None:
        """Let these values hold from here on, whatever did before."""
        self._variable.set(values)
        _entered.set(any(variable.get() for variable in _variables))
        self._attribute = values
