"""What all tests share: a fixed seed, and one thread, for the suite runs in as many processes as there are cores."""

from __future__ import annotations

import os

# Before torch is imported; the processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
