"""The processor that this runs on, and how much of it others take."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def processor() -> str:
    """The processor's name, such as "AMD EPYC"; its architecture where the name is not known."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """The names of the processor's instruction sets as Linux knows them; none elsewhere."""
    return frozenset(_cpuinfo().get("flags", "").split())


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor."""
    try:
        first, *_ = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


class Steal:
    """The share of the processors' time that the hypervisor gave to other guests, since this was made."""

    def __init__(self) -> None:
        self._before = ticks()

    def percent(self) -> float:
        """Percent of all time until now."""
        passed = [now - before for now, before in zip(ticks(), self._before, strict=True)]
        return 100 * passed[7] / sum(passed) if sum(passed) else 0.0


def ticks() -> list[int]:
    """Ticks that the processors spent since boot: user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return [0] * 8
