"""The limit of a machine: matrix products at their peak, memory at its bandwidth, both measured at the start of a run.

    ours:    max((convolution + mixing) / peak, bytes of the bank / bandwidth)
    static:  max(convolution / peak, bytes of the kernel / bandwidth)

The roofline ratio is one over the other: what the ratio would be if both ran at the limit.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

MIB = 2**20


class Roofline:
    """Peak (10^9 multiply-adds a second, by dtype) and bandwidth (10^9 bytes a second, by size) of this machine."""

    def __init__(self, seconds: float = 0.5) -> None:
        self._seconds = seconds
        self.bandwidth = functools.lru_cache(self._bandwidth)
        self.peak = functools.lru_cache(self._peak)

    def ms(self, macs: float, weight_bytes: float, dtype: torch.dtype = torch.float32, passes: int = 1) -> float:
        """The least time, in milliseconds, for so many multiply-adds that go through so many bytes of weights."""
        return max(macs / self.peak(dtype), passes * weight_bytes / self.bandwidth(size_class(weight_bytes))) / 1e6

    def _peak(self, dtype: torch.dtype) -> float:
        """The same product by the library of matrix products and by that of convolutions; the better one counts."""
        size, side = 1024, 32
        a, b, out = (torch.ones(size, size, dtype=dtype) for _ in range(3))
        image = torch.ones(1, size, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        kernel = b.reshape(size, size, 1, 1).contiguous(memory_format=torch.channels_last)
        best = min(self._best_s(lambda: torch.mm(a, b, out=out)), self._best_s(lambda: F.conv2d(image, kernel)))
        return size**3 / best / 1e9

    def _bandwidth(self, mebibytes: int) -> float:
        """Reading memory of this size again and again, whichever cache it stays in.

        The memory is written first: pages that were never written are all one page, and read absurdly fast.
        """
        memory = torch.ones(mebibytes * MIB // 4)
        best = min(self._best_s(lambda: torch.dot(memory, memory)), self._best_s(memory.sum))
        return memory.nbytes / best / 1e9

    def _best_s(self, call: Callable[[], object]) -> float:
        call()
        best, until = float("inf"), time.perf_counter() + self._seconds
        while True:
            started = time.perf_counter()
            call()
            ended = time.perf_counter()
            best = min(best, ended - started)
            if ended > until:
                return best

    def columns(self, weight_bytes: float, dtype: torch.dtype = torch.float32) -> dict[str, object]:
        """Peak and bandwidth as they stand in the rows."""
        return {
            "peak_gflop_s": f"{2 * self.peak(dtype):.0f}",
            "bandwidth_gb_s": f"{self.bandwidth(size_class(weight_bytes)):.1f}",
        }


def size_class(weight_bytes: float) -> int:
    """The size at which the bandwidth for so many bytes is measured: the next power of two of MiB, 1 to 256."""
    mebibytes = 1
    while mebibytes * MIB < weight_bytes and mebibytes < 256:
        mebibytes *= 2
    return mebibytes
