"""What a measurement was made on, and how quiet it was there."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import time
from pathlib import Path

from condconv.benchmarking.rows import measured_on
from condconv.cpu_info import Steal, ticks

ROOT = Path(__file__).resolve().parents[2]
NOISY_PERCENT = 10.0

# What the benchmarks themselves write does not make the code that they measure another one.
_WRITTEN_HERE = (":!benchmarks/results", ":!docs", ":!condconv/execution/fitted.csv")


@functools.cache
def commit() -> str:
    """The commit that is measured, with a + where files differ from it; empty outside of a checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_WRITTEN_HERE) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


GPU_CODE = (
    "execution/batched_gemm.py", "execution/grouped.py", "execution/mixture_of_experts.py", "execution/planner.py",
    "execution/native/triton_kernels.py", "execution/native/triton_ops.py", "execution/native/triton_strategy.py",
    "layers/base.py", "lowered.py", "routers/gates.py", "routers/router.py", "routers/scope.py",
)  # fmt: skip
"""The files of the package that say what a conditional layer does on a GPU."""


@functools.cache
def gpu_code() -> str:
    """A fingerprint of the code that rows measured on a GPU are of: with another one they were not measured since."""
    texts = b"".join((ROOT / "condconv" / name).read_bytes() for name in GPU_CODE)
    return hashlib.sha256(texts).hexdigest()[:12]


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def description() -> dict[str, object]:
    """The columns that every row has: machine, versions, date and commit."""
    return {**measured_on(), "commit": commit()}


class Quiet:
    """Watches how much of the processors others take (Linux; elsewhere it sees nothing).

    `busy_percent` is measured before the run, while this process sleeps; `steal_percent` is the share of time that the
    hypervisor gave to other guests since the last question.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        before = ticks()
        time.sleep(seconds)
        after = ticks()
        total = sum(after) - sum(before)
        idle = sum(after[3:5]) - sum(before[3:5])  # idle, and waiting for a disk
        self.busy_percent = 100 * (1 - idle / total) if seconds and total else 0.0
        self._steal = Steal()
        if self.busy_percent > NOISY_PERCENT:
            print(f"warning: other processes take {self.busy_percent:.0f} % of this machine; times will be noise")

    def columns(self) -> dict[str, object]:
        """Load, and how busy the machine was before the run and since the last question."""
        steal, self._steal = self._steal.percent(), Steal()
        return {
            "load": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "",
            "busy_percent": f"{self.busy_percent:.1f}",
            "steal_percent": f"{steal:.1f}",
        }
