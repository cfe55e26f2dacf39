"""Timing: contenders take turns in short bursts, and each turn gives one ratio of every two of them.

A turn in which the hypervisor gave too much of the processors to other guests is measured again.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.speed.machine import Steal

Call = Callable[[], object]

TURNS = 9
LONG_S = 0.1
"""A call of this length needs no call before it that fills the caches."""
STOLEN_PERCENT = 3.0
"""What other guests may take in a turn that counts."""
MOST_REPEATS = 18
"""Turns that are measured again at most; after that all count."""
HOPELESS = 6
"""A contender that takes this many times as long as the fastest gets two turns only."""


def quantile(values: list[float] | tuple[float, ...], share: float) -> float:
    """Return a quantile of one or more values, interpolated linearly; `share` in [0, 1]."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Spread:
    """A median with its 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @staticmethod
    def of(values: list[float] | tuple[float, ...]) -> Spread:
        """The spread of one or more values."""
        return Spread(statistics.median(values), quantile(values, 0.1), quantile(values, 0.9))


@dataclass(frozen=True)
class Timing:
    """The calls of one contender, turn by turn, in milliseconds."""

    turns: tuple[tuple[float, ...], ...]

    @property
    def ms(self) -> Spread:
        """Time of a call."""
        return Spread.of([call for turn in self.turns for call in turn])

    @property
    def calls(self) -> int:
        """Number of calls that were timed."""
        return sum(map(len, self.turns))

    def over(self, other: Timing) -> Spread:
        """The ratio to another contender: that of the medians of each turn that both had."""
        pairs = zip(self.turns, other.turns, strict=False)
        return Spread.of([statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs])


def measure(contenders: Mapping[str, Call], burst_s: float = 0.02, quick: bool = False) -> dict[str, Timing]:
    """Time contenders that take turns.

    A turn is one burst of calls of each contender, as many as fit into `burst_s` seconds (at least one); the order
    rotates from turn to turn. The first call of a burst finds the caches full of the others' data and is left out.
    Turns from which other guests took their share are measured again: see `STOLEN_PERCENT`, `MOST_REPEATS`.
    `quick` does as little as shows that everything works.
    """
    turns, repeats, burst_s = (2, 0, 0.0) if quick else (TURNS, MOST_REPEATS, burst_s)
    one_call_s = {name: _warm_up(call) for name, call in contenders.items()}
    fastest_s = min(one_call_s.values())
    had: dict[str, list[tuple[float, ...]]] = {name: [] for name in contenders}
    names = list(contenders)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(turns):
            first = turn % len(names)
            runners = [n for n in names[first:] + names[:first] if turn < 2 or one_call_s[n] < HOPELESS * fastest_s]
            while True:
                steal = Steal()
                bursts = {name: _burst(contenders[name], one_call_s[name], burst_s) for name in runners}
                if steal.percent() <= STOLEN_PERCENT or repeats == 0:
                    break
                repeats -= 1
            for name, burst in bursts.items():
                had[name].append(burst)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(bursts)) for name, bursts in had.items()}


def _seconds(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _warm_up(call: Call) -> float:
    """Call a few times (the first one may compile) and return what one call takes."""
    first = _seconds(call)
    if first > 1:  # slow, or compiled just now: once more tells which
        return _seconds(call)
    return min(_seconds(call) for _ in range(3))


def _burst(call: Call, one_call_s: float, burst_s: float) -> tuple[float, ...]:
    if one_call_s < LONG_S:
        call()
    number = max(1, min(100, round(burst_s / max(one_call_s, 1e-6))))
    return tuple(1e3 * _seconds(call) for _ in range(number))
