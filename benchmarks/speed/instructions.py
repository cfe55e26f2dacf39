"""Measuring with an instruction set: what holds a process to it, and a process that is held to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.speed.machine import ROOT
from condconv.execution.fitted import INSTRUCTIONS
from condconv.execution.native import cpu_features

CHILD = "measure-held"
"""The first word of a script's command line that asks for rows on standard output, of a task on standard input."""
HELD_TO = {
    "avx512": {"CONDCONV_ISA": "avx512"},
    "avx2": {
        "CONDCONV_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "best": {},
}
"""What holds the native operator, torch, oneDNN and MKL to an instruction set."""


def available() -> list[str]:
    """The instruction sets that this CPU has."""
    return [name for name in INSTRUCTIONS if name.upper() in cpu_features()]


def held_to(instructions: str, module: str, task: object) -> Iterator[dict[str, Any]]:
    """The rows of a task, measured by `module` in one process that uses an instruction set and nothing later."""
    command = [sys.executable, "-m", module, CHILD]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **HELD_TO[instructions]},
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        json.dump(task, child.stdin)
        child.stdin.close()
        yield from map(json.loads, child.stdout)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)


def task_of(words: list[str]) -> Any:
    """The task of a process that `held_to` started; None in any other one."""
    return json.load(sys.stdin) if words[:1] == [CHILD] else None


def answer(row: object) -> None:
    """Hand a row to the process that asked."""
    print(json.dumps(row), flush=True)
