"""Which sample comes when: an order that depends on (seed, epoch) alone, shared among ranks, resumable at any
position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

PADDING = -1
"""Index of a place that is there only to give every rank the same number of samples."""


class SampleKey(NamedTuple):
    """What the sampler asks the data set for. The epoch travels with it, so that a worker needs no state."""

    epoch: int
    place: int


class EpochSampler(Sampler[SampleKey]):
    """The samples of one rank, epoch by epoch.

    With `shuffle`, each epoch is a permutation drawn from (seed, epoch); the rank takes every `world_size`-th, and the
    few that don't fill a round of `multiple_of` for every rank are left out of that epoch. Without, the order is that
    of the set and missing places are `PADDING`. With `labels`, int64 (size,), a shuffled epoch has every class equally
    often, see `balanced_order`.
    """

    def __init__(
        self,
        size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        multiple_of: int = 1,
        labels: Tensor | None = None,
    ) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.multiple_of = multiple_of
        self.labels = labels
        self.epoch = 0
        self.position = 0

    def resume(self, epoch: int, position: int) -> None:
        """Begin `epoch` after the first `position` samples of this rank; later epochs begin at 0."""
        self.epoch = epoch
        self.position = position

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a position set for this very epoch stays."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.position = 0

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch, wherever it was resumed."""
        if self.shuffle:
            return self.size // self.world_size // self.multiple_of * self.multiple_of
        return -(-self.size // self.world_size)

    def __iter__(self) -> Iterator[SampleKey]:
        """The keys of this epoch from the position on."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, self.size))
            if self.labels is None:
                order = torch.randperm(self.size, generator=generator)
            else:
                order = balanced_order(self.labels, generator)
        else:
            order = torch.arange(self.size)
            missing = len(self) * self.world_size - self.size
            order = torch.cat([order, torch.full((missing,), PADDING)])
        mine = order[self.rank :: self.world_size][: len(self)]
        for index in mine[self.position :].tolist():
            yield SampleKey(self.epoch, index)


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many places as there are labels (N,), random; every class equally often, and in it every image, up to one."""
    members = [group for group in labels.argsort(stable=True).split(labels.bincount().tolist()) if len(group)]
    each = -(-len(labels) // len(members))
    drawn = []
    for group in members:
        rounds = [group[torch.randperm(len(group), generator=generator)] for _ in range(-(-each // len(group)))]
        drawn.append(torch.cat(rounds)[:each])
    # Class by class in turn, so that what is cut off at the end is at most one image of a class.
    order = torch.stack(drawn, dim=1).flatten()[: len(labels)]
    return order[torch.randperm(len(order), generator=generator)]


_MASK = (1 << 64) - 1


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 63-bit seed for one sample of one epoch, by three rounds of SplitMix64 (Steele, Lea, Flood 2014)."""
    state = 0
    for word in (seed, epoch, index):
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1
