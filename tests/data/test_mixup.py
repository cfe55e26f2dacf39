from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from condconv.data import EpochSampler, ImageView, MixupView, SampleKey, Source, open_source
from condconv.data.transforms import auto_augments


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("digits").limited(32, 8)


def mixed(source: Source, **arguments: object) -> MixupView:
    return MixupView(ImageView(source, train=True, **arguments), alpha=0.2)


def test_a_sample_is_a_blend_of_two_images_and_their_labels(source: Source) -> None:
    view = mixed(source, seed=4)
    by_label: dict[int, list[torch.Tensor]] = {}
    for index in range(32):
        plain = view.view[SampleKey(2, index)]
        by_label.setdefault(plain.label, []).append(plain.image)
    for index in range(20):
        sample, own = view[SampleKey(2, index)], view.view[SampleKey(2, index)]
        assert (sample.label, sample.place) == (own.label, index)
        assert 0.5 <= float(sample.weight) <= 1
        rest = sample.image - sample.weight * own.image
        distances = [float((rest - (1 - sample.weight) * image).abs().max()) for image in by_label[sample.partner]]
        assert min(distances) < 1e-5


def test_partner_and_weight_depend_on_seed_epoch_and_index_alone(source: Source) -> None:
    def draws(view: MixupView, epoch: int) -> list[tuple[int, float]]:
        return [(s.partner, float(s.weight)) for s in (view[SampleKey(epoch, i)] for i in reversed(range(30)))]

    first = draws(mixed(source, seed=1), 0)
    state = torch.get_rng_state()
    assert draws(mixed(source, seed=1), 0) == first
    assert torch.equal(state, torch.get_rng_state())
    assert draws(mixed(source, seed=2), 0) != first
    assert draws(mixed(source, seed=1), 1) != first


@pytest.mark.parametrize("name", auto_augments.names())
def test_batches_are_the_same_with_and_without_workers(source: Source, name: str) -> None:
    view = mixed(source, seed=3, auto_augment=name)

    def batches(workers: int, size: int) -> list[torch.Tensor]:
        loader = DataLoader(
            view, batch_size=size, sampler=EpochSampler(len(view), shuffle=True, seed=3), num_workers=workers
        )
        return [torch.cat(column) for column in zip(*((b.image.flatten(1), b.partner, b.weight) for b in loader))]  # noqa: B905

    alone = batches(0, 8)
    # One of them in real worker processes; the others in batches of another size.
    together = batches(2, 8) if name == "imagenet" else batches(0, 16)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_learned_augmentation_changes_images_in_their_own_way(source: Source) -> None:
    views = [ImageView(source, train=True, seed=3, auto_augment=name) for name in (None, "rand", "trivial")]
    images = [torch.stack([view[SampleKey(0, i)].image for i in range(32)]) for view in views]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_a_rank_gets_whole_steps(source: Source) -> None:
    sampler = EpochSampler(70, shuffle=True, world_size=3, rank=1, multiple_of=8)
    assert len(sampler) == len(list(sampler)) == 16


def test_another_input_size(source: Source) -> None:
    assert source.resized(None) is source
    assert source.resized(8).native
    larger = source.resized(12)
    assert not larger.native
    for train in (True, False):
        assert ImageView(larger, train=train)[SampleKey(0, 0)].image.shape == (1, 12, 12)
