"""A fork of a process that has computed: with one thread it computes too; with several it hangs where torch hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch import nn

import condconv
from tests.processes import run

HANGS_S = 20


def fork(kind: str, threads: int, childs_threads: int) -> int:
    """Compute with some threads, and once more in a fork; → its exit code, or the signal that ended it."""
    layers: dict[str, Callable[[], nn.Module]] = {
        "torch": lambda: nn.Conv2d(32, 32, 3),
        "native": lambda: condconv.CondConv2d(32, 32, 3, num_experts=4, strategy="native"),
        "auto": lambda: condconv.CondConv2d(32, 32, 3, num_experts=4),
    }
    layer, x = layers[kind](), torch.randn(8, 32, 16, 16)
    torch.set_num_threads(threads)
    layer(x).sum().backward()
    y = layer(x)
    child = os.fork()
    if child == 0:
        signal.alarm(HANGS_S)
        if childs_threads != threads:
            torch.set_num_threads(childs_threads)
        with torch.no_grad():
            os._exit(0 if torch.allclose(layer(x), y, atol=1e-5) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


@pytest.mark.parametrize("kind", ["torch", "native", "auto"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_computes_with_one_thread(kind: str, threads: int) -> None:
    if kind == "native" and not condconv.execution.native.available():
        pytest.skip("no native operator")
    assert run(fork, kind, threads, 1).returncode == 0


@pytest.mark.slow
def test_a_fork_hangs_with_several_threads_only_where_torch_does() -> None:
    plain, ours = (run(fork, kind, 2, 2).returncode for kind in ("torch", "auto"))
    assert plain != 0 or ours == 0
