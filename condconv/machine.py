"""The processor that this runs on."""

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
