"""Conditional convolutions in a network of your own, in ten lines.

python examples/condconv_in_your_network.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import condconv


class Block(nn.Module):
    """A residual block, as somebody might have written it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class YourNetwork(nn.Sequential):
    """Any network will do; it need not know of this library."""

    def __init__(self) -> None:
        stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        blocks = [Block(32) for _ in range(4)]
        super().__init__(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def main() -> tuple[nn.Module, float]:
    """Convert the last two blocks, take a training step; returns the network and the loss."""
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))

    network: nn.Module = YourNetwork()
    plan = condconv.plan(
        network, "condconv", targets="last 2 blocks", num_experts=4, init="fresh", input_size=(3, 32, 32)
    )
    print(plan)  # which layers, why not the others, what it costs; nothing has changed yet
    network = plan.apply()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    optimiser.step()

    with condconv.record_routing(network.eval()) as routing:
        network(images)
    print("\ncoefficients of the last block, one line for each image:")
    print(routing["4.conv2"])
    return network, loss.item()


if __name__ == "__main__":
    main()
