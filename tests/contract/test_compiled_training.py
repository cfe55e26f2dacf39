"""Networks with conditional layers train compiled as they do eager: whole graph, forward, backward, several steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.variants import variants
from tests.contract.cases import MIXTURES, derived

EACH = [pytest.param(n, marks=pytest.mark.slow if derived(variants[n].design) else ()) for n in MIXTURES]


class Small(nn.Module):
    """A stem, a depthwise and a pointwise convolution, a strided one, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → logits (B, 4)."""
        return self.head(self.body(self.depthwise(self.stem(x))).mean(dim=(2, 3)))


def network(variant: str) -> nn.Module:
    """The network with all convolutions but the first conditional; temperatures at 1, as at the end of training."""
    converted = condconv.convert(Small(), variant, num_experts=3, targets="(depthwise|body).*", share=None)
    for module in converted.modules():
        if isinstance(module, condconv.SoftmaxGate):
            module.anneal(1.0)
    return converted.train().to(memory_format=torch.channels_last)


def trained(model: nn.Module, backend: str | None) -> tuple[list[Tensor], list[Tensor]]:
    """The losses of three steps of SGD on given images, and the parameters and buffers after them."""
    run = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3):
        x = torch.randn(4, 3, 12, 12, generator=generator).to(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(run(x), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses, [tensor.detach() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", EACH)
def test_compiled_training_ends_where_eager_does(variant: str, backend: str) -> None:
    eager = network(variant)
    compiled = copy.deepcopy(eager)
    expected, found = trained(eager, None), trained(compiled, backend)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-4)
