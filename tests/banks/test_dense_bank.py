"""The bank of dense experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from condconv.banks import DenseBank
from condconv.layers import site_of


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_pruned_bank_lowers_what_is_left(name: str) -> None:
    bank = DenseBank(site_of(nn.Conv2d(2, 4, 3)), 3)
    prune.random_unstructured(bank, name, amount=0.5)
    lowered = bank(torch.rand(2, 3))
    held = lowered.experts if name == "weight" else lowered.expert_bias
    assert held is not None and int((held == 0).sum()) >= held.numel() // 2
