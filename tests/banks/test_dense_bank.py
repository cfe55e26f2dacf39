"""The bank of dense experts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import prune

from condconv.banks import DenseBank


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_pruned_bank_lowers_what_is_left(name: str) -> None:
    bank = DenseBank(3, (4, 2, 3, 3), 4, None, None)
    prune.random_unstructured(bank, name, amount=0.5)
    lowered = bank(torch.rand(2, 3))
    held = lowered.experts if name == "weight" else lowered.expert_bias
    assert held is not None and int((held == 0).sum()) >= held.numel() // 2
