"""Ctrl-C and SIGTERM: remembered when they come, acted on between two steps, so that a checkpoint can be written
first.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed

_MESSAGE = b"\nstopping after this step (press Ctrl-C again to stop at once)\n"


class Interrupted(Exception):
    """The run was asked to stop, and stopped where it can go on. `signum` is the signal that asked."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is only remembered; a second SIGINT raises `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        """Take over the two signals (only the main thread can; elsewhere nothing changes)."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        if signum == signal.SIGINT:
            os.write(2, _MESSAGE)

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signum:
            raise Interrupted(self.signum)


def ignore_interrupts(worker: int = 0) -> None:
    """Leave Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def agree(value: int) -> int:
    """The largest value of all processes, so that they save and stop at the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(value, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return int(tensor)


def leave_signals_to_parent(_: int = 0) -> None:
    """Let a loader process outlive a signal to the whole group (Ctrl-C in a terminal, SIGTERM from a scheduler).

    Its parent still needs batches to finish the step, and ends it then: with SIGTERM, which counts from there alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_asks, daemon=True).start()


def _end_when_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
