"""Calls of `condconv` as tasks of a SLURM array, each on whatever machine has room; submitit hands them over."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condconv.cli.main import main
from condconv.cli.parser import Parser
from condconv.errors import ArgumentError

CLUSTERS = ("slurm", "local")


def add_cluster(parser: Parser) -> None:
    """Add the flags that say where to run."""
    parser.add_argument(
        "--cluster", type=str, choices=CLUSTERS, default=None,
        help="slurm: submit each run as a task of an array, and end; local: as processes of this machine, all at once",
    )  # fmt: skip
    parser.add_argument(
        "--cluster-options", type=str, nargs="+", default=[], metavar="NAME=VALUE",
        help="of submitit, as in timeout_min=600 gpus_per_node=1 slurm_partition=gpu slurm_array_parallelism=8",
    )  # fmt: skip


def submit(calls: Sequence[Sequence[str]], cluster: str, options: Sequence[str], folder: Path) -> list[Any]:
    """Submit calls, each the words after `condconv`, which print into files of `folder`; return submitit's jobs.

    Raises:
        ArgumentError: submitit is missing, does not know an option, or finds no such cluster here.
    """
    try:
        import submitit
    except ImportError:
        message = "--cluster: needs the package submitit; install it with: pip install 'condconv[cluster]'"
        raise ArgumentError(message) from None
    try:
        executor = submitit.AutoExecutor(folder, cluster)
        executor.update_parameters(**{"name": "condconv", **dict(map(_option, options))})
        return executor.map_array(main, calls)
    except (AssertionError, NameError, RuntimeError) as error:
        raise ArgumentError(f"--cluster {cluster}: {str(error).splitlines()[0]}") from error


def _option(words: str) -> tuple[str, Any]:
    name, equals, value = words.partition("=")
    if not (name and equals and value):
        raise ArgumentError(f"--cluster-options {words}: must be NAME=VALUE, as in timeout_min=600")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value
