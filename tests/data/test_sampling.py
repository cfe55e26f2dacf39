from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from condconv.data import EpochSampler, ImageView, SampleKey, Source, TensorImages, open_source, sample_seed
from condconv.data.sampling import PADDING


def _indices(sampler: EpochSampler) -> list[int]:
    return [key.place for key in sampler]


@given(size=st.integers(1, 60), world_size=st.integers(1, 4), epoch=st.integers(0, 5), seed=st.integers(0, 2**40))
def test_ranks_share_an_epoch_without_overlap(size: int, world_size: int, epoch: int, seed: int) -> None:
    drawn = []
    for rank in range(world_size):
        sampler = EpochSampler(size, shuffle=True, seed=seed, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        drawn.append(_indices(sampler))
    assert {len(part) for part in drawn} == {size // world_size}
    together = sum(drawn, [])
    assert len(set(together)) == len(together) and set(together) <= set(range(size))


@given(size=st.integers(1, 60), world_size=st.integers(1, 4))
def test_validation_sees_each_image_once(size: int, world_size: int) -> None:
    parts = [_indices(EpochSampler(size, shuffle=False, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(index for part in parts for index in part if index != PADDING) == list(range(size))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler, other = EpochSampler(100, shuffle=True, seed=1), EpochSampler(100, shuffle=True, seed=2)
    first = _indices(sampler)
    torch.rand(3)
    assert _indices(sampler) == first
    assert _indices(other) != first
    sampler.set_epoch(1)
    assert _indices(sampler) != first


def test_a_position_holds_for_its_epoch() -> None:
    sampler, whole = EpochSampler(50, shuffle=True), EpochSampler(50, shuffle=True)
    sampler.resume(3, 20)
    sampler.set_epoch(3)
    whole.set_epoch(3)
    assert _indices(sampler) == _indices(whole)[20:]
    assert len(sampler) == 50
    sampler.set_epoch(4)
    assert len(_indices(sampler)) == 50


def test_seeds_do_not_collide_in_a_small_grid() -> None:
    seeds = {sample_seed(s, e, i) for s in range(4) for e in range(10) for i in range(500)}
    assert len(seeds) == 4 * 10 * 500
    assert all(0 <= seed < 2**63 for seed in list(seeds)[:100])


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("digits")


def test_augmentation_is_a_function_of_seed_epoch_and_index(source: Source) -> None:
    view = ImageView(source, train=True, seed=5)
    images = torch.stack([view[SampleKey(1, index)].image for index in range(30)])
    torch.rand(7)
    again = torch.stack([view[SampleKey(1, index)].image for index in reversed(range(30))]).flip(0)
    assert torch.equal(images, again)
    assert not torch.equal(images, torch.stack([view[SampleKey(2, index)].image for index in range(30)]))
    other = ImageView(source, train=True, seed=6)
    assert not torch.equal(images, torch.stack([other[SampleKey(1, index)].image for index in range(30)]))


def test_the_global_generator_is_left_alone(source: Source) -> None:
    state = torch.get_rng_state()
    ImageView(source, train=True)[SampleKey(0, 0)]
    assert torch.equal(state, torch.get_rng_state())


def test_workers_change_nothing(source: Source) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        sampler = EpochSampler(64, shuffle=True, seed=3)
        loader = DataLoader(ImageView(source, train=True, seed=3), batch_size=8, sampler=sampler, num_workers=workers)
        return [batch.image for batch in loader]

    alone, together = batches(0), batches(2)
    assert len(alone) == 8
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_limits_choose_a_fixed_subset(source: Source) -> None:
    small = source.limited(40, 10)
    assert (len(small.train), len(small.val)) == (40, 10)
    assert isinstance(small.train, TensorImages) and isinstance(source.limited(40, 10).train, TensorImages)
    assert torch.equal(small.train.load(7), source.limited(40, None).train.load(7))
    assert source.limited(10**6, None).train is source.train
