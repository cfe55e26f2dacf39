"""Real processes that start at once: forks of a server that has imported the large libraries, and nothing of ours.

The server is started when it is first needed, once for each process of the test run, and ends with it. A fork has its
own memory, signals and exit code; only how Python starts is left out. A fork of a test process would not do: it
inherits what earlier tests left behind, and autograd refuses to run in it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(
    [
        "jsonargparse", "matplotlib.backends.backend_agg", "matplotlib.pyplot", "PIL.Image", "pytest",
        "pytorch_lightning", "rich.console", "safetensors.torch", "sklearn.datasets", "timm", "torch",
        "torch.distributed.run", "torchmetrics.classification", "torchvision.transforms.v2", "yaml",
    ]
)  # fmt: skip


def run(
    target: Callable[..., int | None], *arguments: Any, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Call a function of a module in a process of its own; its exit code is what the function returns, as in `main`."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        child = CONTEXT.Process(target=_child, args=(streams, cwd, target, arguments))
        child.start()
        child.join(timeout)
        if child.exitcode is None:
            child.kill()
            child.join()
        out, err = (stream.read_text() if stream.exists() else "" for stream in streams)
    assert child.exitcode is not None
    return subprocess.CompletedProcess([target.__name__, *map(str, arguments)], child.exitcode, out, err)


def run_code(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code as `python -c CODE ARGUMENTS` does."""
    return run(_execute, code, arguments, cwd=cwd)


def _child(
    streams: list[Path], cwd: Path | None, target: Callable[..., int | None], arguments: tuple[Any, ...]
) -> None:
    for number, stream in enumerate(streams, start=1):
        file = os.open(stream, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ["COLUMNS"] = "200"
    # Processes that this one starts are of the usual kind again.
    multiprocessing.set_start_method(None, force=True)
    if cwd is not None:
        os.chdir(cwd)
    sys.exit(target(*arguments))


def _execute(code: str, arguments: tuple[str, ...]) -> None:
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
