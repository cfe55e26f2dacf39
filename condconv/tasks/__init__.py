"""Tasks: what a network is trained for. One folder for each, found by being there; CONTRIBUTING.md says how to add one.

A folder's `__init__.py` says its `SCORE` and is light; its `task.py` has the `Task`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

from condconv.registry import unknown_name_message
from condconv.tasks.score import Score

if TYPE_CHECKING:
    from condconv.runs.config import TrainConfig
    from condconv.tasks.base import Task

DEFAULT = "classify"

__all__ = ["DEFAULT", "Score", "score_of", "task_of", "tasks"]


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


def _known(name: str | None) -> str:
    from condconv.errors import UnknownNameError

    if name is not None and name not in tasks():
        raise UnknownNameError(f"--task: {unknown_name_message('task', name, tasks())}")
    return name or DEFAULT
