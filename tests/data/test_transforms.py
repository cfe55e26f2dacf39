from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from condconv.data import ImageView, SampleKey, Source, open_source
from tests.data.writers import write_folder_set


@pytest.fixture(scope="module", params=["stored size", "resized"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Digits at their stored size, and images of a folder, which are resized; neither is mirrored."""
    if request.param == "stored size":
        return replace(open_source("digits").limited(16, 16), flip=False)
    folder = tmp_path_factory.mktemp("images")
    write_folder_set(folder)
    return replace(open_source(str(folder)), flip=False, image_size=(20, 20))


def images(source: Source, **arguments: bool) -> torch.Tensor:
    view = ImageView(source, train=True, seed=1, **arguments)
    return torch.stack([view[SampleKey(0, index)].image for index in range(len(view))])


def test_without_random_crops_images_are_as_in_validation(source: Source) -> None:
    seen_by_validation = ImageView(replace(source, val=source.train), train=False)
    expected = torch.stack([seen_by_validation[SampleKey(0, i)].image for i in range(len(source.train))])
    assert torch.equal(images(source, random_crop=False), expected)
    assert not torch.equal(images(source), expected)


def test_without_random_crops_images_are_still_mirrored(source: Source) -> None:
    plain, mirrored = (images(replace(source, flip=flip), random_crop=False) for flip in (False, True))
    as_stored = (mirrored == plain).flatten(1).all(1)
    assert (as_stored | (mirrored == plain.flip(3)).flatten(1).all(1)).all()
    assert not as_stored.all()
