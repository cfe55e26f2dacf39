"""An exponential moving average of a network while it trains."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """Averages parameters and the statistics of batch norms; copies every other buffer.

        a ← d a + (1 - d) w,        d = min(decay, (1 + t) / (10 + t)) after step t

    so that the start is forgotten at once (TensorFlow's `num_updates`). A softmax temperature is part of a schedule,
    not a noisy estimate: averaged, it would lag behind for thousands of steps. It is copied, as all counters are.

    Args:
        network: what is averaged; it is copied as it is now.
        decay: d in the long run.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take one step's weights in."""
        self._updates += 1
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        averages, copies = _tensors(self.network)
        now, exact = _tensors(network)
        torch._foreach_lerp_(averages, now, 1 - decay)
        for mine, theirs in zip(copies, exact, strict=True):
            mine.copy_(theirs)

    def get_extra_state(self) -> Tensor:
        """How many steps were taken in."""
        return torch.tensor(self._updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from so many steps."""
        self._updates = int(state)


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What is averaged, and what is copied, in the order of the modules."""
    averaged: list[Tensor] = list(network.parameters())
    copied: list[Tensor] = []
    for module in network.modules():
        statistics = isinstance(module, nn.modules.batchnorm._NormBase)
        for name, buffer in module.named_buffers(recurse=False):
            if statistics and name.startswith("running_"):
                averaged.append(buffer)
            else:
                copied.append(buffer)
    return averaged, copied
