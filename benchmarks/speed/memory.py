"""Peak memory of one network at work, in a process of its own (Linux).

    python -m benchmarks.speed.memory '{"work": "training", "kind": "ours", "batch": 16, "size": 224, …}'   prints JSON

The peak is that of the process's resident memory (VmHWM), so that what native operators allocate outside of torch's
allocator counts. What the process has before the network is made (libraries, the images) is subtracted:

    total    = peak − memory before the network was made
    working  = total − parameters, buffers, gradients and optimiser state

The mark is reset after the network is made: making it is not its work. The C library is told to give freed memory back
at once. All contenders are measured alike.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.speed import subjects
from benchmarks.speed.machine import ROOT
from benchmarks.speed.subjects import Subject

MB = 1e6
STEPS = 3
MEMORY = ("total_mb", "working_mb", "weights_mb")

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""glibc keeps freed memory as it sees fit, which scatters the peak by up to 20 %; with these it gives larger pieces
back at once, and repeated measurements agree within 1 %."""


def measure(work: str, subject: Subject, model: str, batch: int, size: int) -> dict[str, object]:
    """The memory columns, measured in a fresh process; empty columns where there is no /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return dict.fromkeys(MEMORY, "")
    task = {
        "work": work, "kind": subject.kind, "experts": subject.experts, "rest": subject.rest, "model": model,
        "batch": batch, "size": size, "threads": torch.get_num_threads(),
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.speed.memory", json.dumps(task)]
    environment = {**os.environ, **GIVE_BACK}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: f"{found[name]:.1f}" for name in MEMORY}


def use_memory(
    work: str, kind: str, experts: str, rest: str, model: str, batch: int, size: int, threads: int
) -> dict[str, float]:
    """Let one network work in this process and return its memory in 10^6 bytes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = subjects.image_batch(batch, size, rest)
    _load_libraries(rest)
    before = _resident("VmRSS")
    subject = Subject(kind, experts, rest)
    step: Callable[[], object]
    optimizer: torch.optim.Optimizer | None
    if work == "training":
        network = subjects.raw_network(kind, model)
        step = training = subjects.TrainingStep(network, x)
        optimizer = training.optimizer
    else:
        network, optimizer = subjects.inference_network(subject, model), None
        step = functools.partial(network, x)
    _reset_peak()
    with torch.set_grad_enabled(work == "training"):
        for _ in range(STEPS):
            step()
    total = _resident("VmHWM") - before
    kept = sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _kept(network, optimizer)}.values()
    )
    return {"total_mb": total / MB, "working_mb": (total - kept) / MB, "weights_mb": kept / MB}


def _kept(network: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    """Parameters, buffers, gradients and optimiser state."""
    for tensor in (*network.parameters(), *network.buffers()):
        yield tensor
        if tensor.grad is not None:
            yield tensor.grad
    if optimizer is not None:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _load_libraries(rest: str) -> None:
    """Train something tiny, so that libraries, their code and their threads are there before anything is measured."""
    tiny = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    tiny.to(dtype=subjects.DTYPES[rest])
    subjects.TrainingStep(tiny, subjects.image_batch(2, 8, rest))()


def _reset_peak() -> None:
    """Give free memory back and let the peak start from what is resident now."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _resident(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes; `ru_maxrss` would inherit the peak of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    print(json.dumps(use_memory(**json.loads(sys.argv[1]))))
