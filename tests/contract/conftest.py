"""Two calls in training are compared without the noise that differs between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from condconv.variants import sparse_moe


@pytest.fixture(autouse=True, scope="module")
def without_noise() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_moe, "noise", torch.zeros_like)
        yield
