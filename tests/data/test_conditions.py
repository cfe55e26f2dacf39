"""Pictures under unknown conditions: a function of the seed, fixed in validation, and what each condition does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from condconv.data import ImageView, SampleKey, Source, open_source, sample_seed
from condconv.data.conditions import conditions, parse_conditions
from condconv.errors import ArgumentError
from condconv.runs.config import CONDITIONS


@pytest.fixture(scope="module")
def source() -> Source:
    return replace(open_source("digits").limited(40, 40), flip=False)


def images(source: Source, train: bool, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    view = ImageView(source, train=train, seed=seed, random_crop=False)
    return torch.stack([view[SampleKey(epoch, index)].image for index in range(len(view))])


def test_the_command_lines_names_are_the_registrys() -> None:
    assert list(CONDITIONS) == conditions.names() == list(parse_conditions("all", (8, 8)).names)


def test_training_depends_on_seed_and_epoch_and_validation_on_neither(source: Source) -> None:
    under = source.under("all")
    first = images(under, train=True)
    assert torch.equal(first, images(under, train=True))
    assert not torch.equal(first, images(under, train=True, epoch=1))
    assert not torch.equal(first, images(under, train=True, seed=1))
    fixed = images(under, train=False)
    assert torch.equal(fixed, images(under, train=False, seed=5, epoch=3))


@pytest.mark.parametrize("name", [name for name in conditions if name != "plain"])
def test_each_condition_changes_each_picture_and_plain_none(source: Source, name: str) -> None:
    plain, changed = (images(source.under(text), train=False) for text in ("plain", name))
    assert torch.equal(plain, images(source, train=False))
    assert ((plain - changed).flatten(1).abs().amax(dim=1) > 0.05).all()


def test_what_the_conditions_are(source: Source) -> None:
    plain, inverted, turned = (images(source.under(text), train=False) for text in ("plain", "inverted", "turned"))
    mean, std = source.mean[0], source.std[0]
    assert torch.allclose(inverted * std + mean, 1 - (plain * std + mean), atol=1e-6)
    assert torch.equal(turned, plain.rot90(1, (2, 3)))
    blurred, more = (images(source.under(text), train=False).flatten(1) for text in ("blurred", "blurred:2"))
    assert (more.std(dim=1) < blurred.std(dim=1)).all() and (blurred.std(dim=1) < plain.flatten(1).std(dim=1)).all()
    noise = [(images(source.under(text), train=False) - plain * 0.5).std() for text in ("noisy", "noisy:2")]
    assert [float(n) for n in noise] == pytest.approx([0.7, 1.4], rel=0.1)


def test_all_conditions_occur_about_equally_often_and_a_view_says_which(source: Source) -> None:
    under = source.under("plain,inverted")
    view = ImageView(under, train=False)
    which = [view.condition_of(index) for index in range(40)]
    assert 8 < sum(which) < 32
    plain, inverted = (images(source.under(text), train=False) for text in ("plain", "inverted"))
    mixed = images(under, train=False)
    assert all(torch.equal(mixed[i], (plain, inverted)[which[i]][i]) for i in range(40))
    assert which[3] == under.conditions.of(sample_seed(0, 0, 3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain,inverte", ["inverted"]),
        ("plain,plain", ["twice"]),
        ("noisy:x", ["'x'", "noisy:1.5"]),
        ("noisy:-1", ["'-1'", "above 0"]),
        ("turned:2", ["turned", "noisy and blurred"]),
        ("", ["condition"]),
    ],
)
def test_bad_conditions_are_named(text: str, words: list[str]) -> None:
    with pytest.raises(ArgumentError) as error:
        parse_conditions(text, (8, 8))
    assert all(word in str(error.value) for word in words)


def test_only_square_pictures_are_turned() -> None:
    with pytest.raises(ArgumentError, match="not square .8 x 9 pixels."):
        parse_conditions("all", (8, 9))
