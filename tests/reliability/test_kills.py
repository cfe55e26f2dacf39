"""Whatever a kill leaves, the same command goes on or starts over, and ends where an uninterrupted one does.

The counts are printed: `pytest -s tests/reliability/test_kills.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.processes import run
from tests.reliability import kills

PARTS = {"convert": 1, "shard": 1, "predict": 1, "analyze": 1, "sweep": 1, "train": 4}
"""Verb → how many tests share its kills."""
RANDOM = {"train": 5, "shard": 2}
RANDOM_KILLS = 100


def require_clean(target: Callable[..., int], *arguments: object) -> None:
    done = run(target, *arguments, timeout=3000)
    print(done.stdout.splitlines()[-1] if done.stdout else done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name, part", [(name, part) for name, parts in PARTS.items() for part in range(parts)])
def test_killed_at_every_file_operation(name: str, part: int) -> None:
    require_clean(kills.run_and_note, name, PARTS[name], part)


@pytest.mark.parametrize("name, every, first", [("convert", 9, 4), ("shard", 40, 3)])
def test_killed_at_some(name: str, every: int, first: int) -> None:
    require_clean(kills.run, name, every, first)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name, part", [(name, part) for name, parts in RANDOM.items() for part in range(parts)])
def test_killed_at_random_times(name: str, part: int) -> None:
    require_clean(kills.disturb_and_note, name, RANDOM_KILLS // RANDOM[name], part)


def test_killed_at_some_random_times() -> None:
    require_clean(kills.run_disturbed, "shard", 3)
