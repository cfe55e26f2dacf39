"""Tasks: what a network is trained for. One folder for each, found by being there; CONTRIBUTING.md says how to add one.

A folder's `__init__.py` says its `SCORE`, and may say which data are plainly for it; it is light. Its `task.py` has the
`Task`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from condconv.registry import unknown_name_message
from condconv.tasks.score import Score

if TYPE_CHECKING:
    from condconv.runs.config import TrainConfig
    from condconv.tasks.base import Task

DEFAULT = "classify"

__all__ = ["DEFAULT", "Score", "score_of", "task_named_by", "task_of", "tasks"]


def tasks() -> list[str]:
    """Names of all tasks."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def score_of(name: str | None) -> Score:
    """The score of a task, the default's where None.

    Raises `UnknownNameError` for an unknown name.
    """
    score: Score = import_module(f"{__name__}.{_known(name)}").SCORE
    return score


def task_of(config: TrainConfig) -> Task:
    """The task of a run.

    Raises:
        UnknownNameError: an unknown task.
        ArgumentError: settings that the task has no use for.
    """
    task: Task = import_module(f"{__name__}.{_known(config.task)}.task").TASK(config)
    return task


def task_named_by(data: str) -> str | None:
    """The task that a folder is plainly for, by the `recognises` of its `__init__.py`; None where nothing says so."""
    for name in tasks():
        recognises = getattr(import_module(f"{__name__}.{name}"), "recognises", None)
        if recognises is not None and recognises(Path(data).expanduser()):
            return name
    return None


def _known(name: str | None) -> str:
    from condconv.errors import UnknownNameError

    if name is not None and name not in tasks():
        raise UnknownNameError(f"--task: {unknown_name_message('task', name, tasks())}")
    return name or DEFAULT
