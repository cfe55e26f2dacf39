"""What all tests share: a fixed seed, and one thread, for the suite runs in as many processes as there are cores."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
