"""Timing: contenders take turns in short bursts, and each turn gives one ratio of every two of them.

A turn in which the hypervisor gave too much of the processors to other guests is measured again, and so is one that
differs too much from the others.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from condconv.cpu_info import Steal

Call = Callable[[], object]
Bursts = dict[str, tuple[float, ...]]
"""The calls of one turn, in milliseconds, by contender."""

TURNS = 9
LONG_S = 0.1
"""A call of this length needs no call before it that fills the caches."""
STOLEN_PERCENT = 3.0
"""What other guests may take in a turn that counts."""
MOST_REPEATS = 18
"""Turns that are measured again at most; after that all count."""
UNSTEADY = 0.3
"""A turn whose median differs by a larger share from the median of all turns is measured once more."""
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
    def p95_ms(self) -> float:
        """The time that 95 % of the calls stay below."""
        return quantile([call for turn in self.turns for call in turn], 0.95)

    @property
    def calls(self) -> int:
        """Number of calls that were timed."""
        return sum(map(len, self.turns))

    @property
    def unsteady(self) -> list[int]:
        """The turns that differ from the others by more than `UNSTEADY`."""
        medians = [statistics.median(turn) for turn in self.turns]
        middle = statistics.median(medians)
        return [turn for turn, median in enumerate(medians) if abs(median / middle - 1) > UNSTEADY]

    def over(self, other: Timing) -> Spread:
        """The ratio to another contender: that of the medians of each turn that both had."""
        pairs = zip(self.turns, other.turns, strict=False)
        return Spread.of([statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs])


def measure(
    contenders: Mapping[str, Call], burst_s: float = 0.02, quick: bool = False, turns: int = TURNS
) -> dict[str, Timing]:
    """Time contenders that take turns.

    A turn is one burst of calls of each contender, as many as fit into `burst_s` seconds (at least one); the order
    rotates from turn to turn. The first call of a burst finds the caches full of the others' data and is left out.
    Turns from which other guests took their share are measured again (`STOLEN_PERCENT`, `MOST_REPEATS`), and those that
    differ from the others once (`UNSTEADY`). `quick` does as little as shows that everything works.
    """
    turns, repeats, burst_s = (2, 0, 0.0) if quick else (turns, MOST_REPEATS, burst_s)
    one_call_s = {name: _warm_up(call) for name, call in contenders.items()}
    fastest_s = min(one_call_s.values())
    names = list(contenders)

    def take(turn: int) -> Bursts:
        nonlocal repeats
        first = turn % len(names)
        runners = [n for n in names[first:] + names[:first] if turn < 2 or one_call_s[n] < HOPELESS * fastest_s]
        while True:
            steal = Steal()
            bursts = {name: _burst(contenders[name], one_call_s[name], burst_s) for name in runners}
            if steal.percent() <= STOLEN_PERCENT or repeats == 0:
                return bursts
            repeats -= 1

    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        had = [take(turn) for turn in range(turns)]
        if not quick:
            for turn in sorted({turn for timing in _timings(names, had).values() for turn in timing.unsteady}):
                had[turn] = take(turn)
    finally:
        if collecting:
            gc.enable()
    return _timings(names, had)


def finished(call: Call, device: torch.device) -> Call:
    """A call that ends when the device has done all that was asked of it; on a CPU that is the call itself."""
    if device.type == "cpu":
        return call
    wait = getattr(torch, device.type).synchronize

    def waiting() -> None:
        call()
        wait()

    return waiting


def _timings(names: list[str], had: list[Bursts]) -> dict[str, Timing]:
    return {name: Timing(tuple(bursts[name] for bursts in had if name in bursts)) for name in names}


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
