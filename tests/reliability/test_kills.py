"""Whatever a kill leaves, the same command goes on or starts over, and ends where an uninterrupted one does.

The counts are printed: `pytest -s tests/reliability/test_kills.py`.
"""

from __future__ import annotations

import pytest

from tests.processes import run
from tests.reliability import kills

NAMES = ("convert", "shard", "predict", "analyze", "sweep", "train")


def require_clean(name: str, every: int, first: int) -> None:
    done = run(kills.run, name, every, first, timeout=3000)
    print(done.stdout.splitlines()[-1] if done.stdout else done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_file_operation(name: str) -> None:
    require_clean(name, 1, 0)


@pytest.mark.parametrize("name, every, first", [("convert", 9, 4), ("shard", 40, 3)])
def test_killed_at_some(name: str, every: int, first: int) -> None:
    require_clean(name, every, first)
