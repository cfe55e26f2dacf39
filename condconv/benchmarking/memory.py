"""Peak memory of one network at work, in a process of its own (Linux), or on a GPU.

    python -m condconv.benchmarking.memory FILE     prints JSON; FILE is what `measure` wrote

The peak is that of the process's resident memory (VmHWM), so that what native operators allocate outside of torch's
allocator counts. What the process has before the network is there (libraries, the images) is subtracted:

    total    = peak − memory before the network
    working  = total − parameters, buffers, gradients and optimiser state

The mark is reset after the network is there: making it is not its work, and neither is compiling it. The C library is
told to give freed memory back at once. All contenders are measured alike.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv import CondConv2d
from condconv.benchmarking.networks import TrainingStep

MB = 1e6
STEPS = 3
MEMORY = ("total_mb", "working_mb", "weights_mb")

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""glibc keeps freed memory as it sees fit, which scatters the peak by up to 20 %; with these it gives larger pieces
back at once, and repeated measurements agree within 1 %."""


def measure(network: nn.Module, x: Tensor, training: bool = False, compiled: bool = False) -> dict[str, object]:
    """The memory columns of a network on the CPU, measured in a fresh process; empty where there is no /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return dict.fromkeys(MEMORY, "")
    with tempfile.TemporaryDirectory() as folder:
        # Our own file, so that it may be a pickle. The images come before the network, which is not to be loaded yet.
        path = Path(folder, "network")
        task = {"x": x, "training": training, "compiled": compiled, "threads": torch.get_num_threads()}
        torch.save(task, path.with_suffix(".task"))
        torch.save(network, path)
        command = [sys.executable, "-m", __name__, str(path)]
        environment = {**os.environ, **GIVE_BACK}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: f"{found[name]:.1f}" for name in MEMORY}


def use_memory(
    load: Callable[[], nn.Module], x: Tensor, training: bool = False, compiled: bool = False
) -> dict[str, float]:
    """Let one network work in this process and return its memory in 10^6 bytes."""
    torch.manual_seed(0)
    _load_libraries(x.dtype, compiled)
    before = _resident("VmRSS")
    network = load()
    step, optimizer = work(network, x, training, compiled)
    with torch.set_grad_enabled(training):
        if compiled:
            step()
        _reset_peak()
        for _ in range(STEPS):
            step()
    total = _resident("VmHWM") - before
    kept = sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _kept(network, optimizer)}.values()
    )
    return {"total_mb": total / MB, "working_mb": (total - kept) / MB, "weights_mb": kept / MB}


def work(
    network: nn.Module, x: Tensor, training: bool, compiled: bool
) -> tuple[Callable[[], object], torch.optim.Optimizer | None]:
    """One inference or one step of training to call, and its optimiser; what is compiled is so at the first call."""
    run = torch.compile(network, dynamic=False) if compiled else network
    if training:
        step = TrainingStep(network, x, run)
        return step, step.optimizer
    return torch.no_grad()(lambda: run(x)), None


def on_gpu(call: Callable[[], object], weights_bytes: int) -> float:
    """Memory on a CUDA device in 10^6 bytes: a network's weights, and what a call holds beyond them at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before + weights_bytes) / MB


def _kept(network: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    """Parameters, buffers, gradients and optimiser state."""
    for tensor in (*network.parameters(), *network.buffers()):
        yield tensor
        if tensor.grad is not None:
            yield tensor.grad
    if optimizer is not None:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _load_libraries(dtype: torch.dtype, compiled: bool) -> None:
    """Run something tiny, so that libraries, their code, threads and tables are there before anything is measured."""
    importlib.import_module("condconv.inference")  # What a pickled network may need.
    norm = (nn.BatchNorm2d(16), nn.ReLU(), CondConv2d(16, 16, 3, num_experts=2))
    tiny = nn.Sequential(nn.Conv2d(3, 16, 3), *norm, nn.Flatten(), nn.Linear(16 * 16, 10)).to(dtype=dtype)
    x = torch.ones(2, 3, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for training in (False, True):
        work(tiny, x, training, compiled)[0]()


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


def _main(path: Path) -> None:
    task: dict[str, Any] = torch.load(path.with_suffix(".task"))
    torch.set_num_threads(task.pop("threads"))
    print(json.dumps(use_memory(lambda: torch.load(path, weights_only=False), **task)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
