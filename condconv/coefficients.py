"""What an example's coefficients mean: one flat tensor (B, D) of named slices, one after the other.

A bank says which slices it needs, a router fills them. Names that banks here use:

* "mixing": n weights of the experts;
* "input", "output", "taps": factors of the input channels, output channels and kernel positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

MIXING = "mixing"


class Slice(NamedTuple):
    """One part of the coefficients."""

    name: str
    identity: tuple[float, ...]
    """The values, one for each coefficient, with which the bank stands for one static kernel."""

    @property
    def length(self) -> int:
        """How many coefficients it has."""
        return len(self.identity)


@dataclass(frozen=True)
class Slices:
    """The parts of the coefficients, in their order."""

    parts: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """D, the number of coefficients of an example."""
        return sum(part.length for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the slices."""
        return tuple(part.name for part in self.parts)

    @property
    def identity(self) -> tuple[float, ...]:
        """The D coefficients with which the bank stands for one static kernel."""
        return tuple(value for part in self.parts for value in part.identity)

    def span(self, name: str) -> slice:
        """Return where the slice of that name lies; an empty one where there is none."""
        start = 0
        for part in self.parts:
            if part.name == name:
                return slice(start, start + part.length)
            start += part.length
        return slice(0, 0)

    def length(self, name: str) -> int:
        """Return how many coefficients the slice of that name has; 0 where there is none."""
        span = self.span(name)
        return int(span.stop - span.start)

    def of(self, coefficients: Tensor, name: str) -> Tensor | None:
        """Return the part (B, length) of coefficients (B, D), a view; None where there is no such slice."""
        span = self.span(name)
        return None if span.stop == 0 else coefficients[:, span]

    def __str__(self) -> str:
        return " + ".join(f"{part.name} {part.length}" for part in self.parts)


def mixing(num_experts: int) -> Slices:
    """The coefficients of a plain mixture: one for each expert; the first expert alone is the identity."""
    return Slices((Slice(MIXING, (1.0, *[0.0] * (num_experts - 1))),))
