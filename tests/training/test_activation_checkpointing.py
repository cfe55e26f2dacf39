from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from condconv.conversion import convert
from condconv.errors import ArgumentError
from condconv.models import create_model
from condconv.training.activation_checkpointing import checkpoint_activations


@pytest.mark.parametrize("share", ["block", 2, None])
def test_one_step_ends_as_it_does_without(share: object) -> None:
    network = create_model("mobilenetv1_025", num_classes=3, output_stride=8, drop_rate=0.3)
    convert(network, targets="last 4 blocks", num_experts=2, share=share, init="fresh")
    saving = copy.deepcopy(network)
    checkpoint_activations(saving)
    x, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    losses = []
    for each in (network, saving):
        torch.manual_seed(1)
        loss = nn.functional.cross_entropy(each.train()(x), labels)
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    plain, recomputed = network.state_dict(), saving.state_dict()
    assert plain.keys() == recomputed.keys() and all(torch.equal(plain[name], recomputed[name]) for name in plain)
    for one, other in zip(network.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_it_needs_blocks() -> None:
    with pytest.raises(ArgumentError, match="Linear has no set_grad_checkpointing"):
        checkpoint_activations(nn.Linear(2, 2))
