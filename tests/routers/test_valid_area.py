"""Batches that are padded: routers see each image as if it were alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.errors import ArgumentError, ShapeError
from condconv.routers import annealed_gates
from condconv.variants import variants

SIZES = ((5, 9), (12, 7), (1, 1), (12, 16))


def padded(images: list[Tensor], height: int, width: int) -> Tensor:
    """Images (C, h, w) below and on the right filled with what must not be seen: (B, C, H, W)."""
    batch = torch.full((len(images), images[0].shape[0], height, width), 1e3, dtype=images[0].dtype)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


def telling(router: nn.Module) -> nn.Module:
    """With weights so large that another input shows."""
    torch.manual_seed(0)
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    for gate in annealed_gates(router):
        if gate.called == "interpolation":  # At its start it says nothing of the image.
            gate.anneal(0.5)
    return router.eval()


@pytest.mark.parametrize("variant", sorted(variants))
def test_the_padding_is_not_seen(variant: str) -> None:
    made = next(layer for layer in variants[variant].layers if layer.static_type is nn.Conv2d)
    layer = made(8, 4, 3, padding=1)
    router = telling(layer.router)
    images = [torch.randn(8, *size) for size in SIZES]
    alone = torch.cat([router(image[None]) for image in images])
    batch = padded(images, 12, 16)
    with condconv.valid_area(SIZES, (12, 16)):
        torch.testing.assert_close(router(batch), alone)
        with torch.inference_mode():  # where a native operator would pool
            torch.testing.assert_close(router(batch), alone)
        with condconv.valid_area(None):
            assert not torch.allclose(router(batch), alone)
    assert not torch.allclose(router(batch), alone)


@pytest.mark.parametrize("downsampled", [1, 2, 3, 4])
def test_maps_are_filled_as_convolutions_of_stride_two_leave_them(downsampled: int) -> None:
    router = telling(condconv.PooledLinear(2, 3))
    steps = nn.Sequential(*(nn.MaxPool2d(1, stride=2) for _ in range(downsampled)))
    images = [torch.randn(2, *size) for size in ((33, 70), (96, 64), (7, 96))]
    alone = torch.cat([router(steps(image[None])) for image in images])
    with condconv.valid_area(torch.tensor([image.shape[1:] for image in images]), (96, 96)):
        torch.testing.assert_close(router(steps(padded(images, 96, 96))), alone)


def test_maps_of_another_scale_are_filled_in_proportion() -> None:
    router = telling(condconv.PooledLinear(2, 3))
    x = torch.randn(1, 2, 6, 10)
    expected = router(x[:, :, :3, :5])
    with condconv.valid_area([(42, 70)], (84, 140)):  # patches of 14 pixels
        torch.testing.assert_close(router(x), expected)


def test_gradients_reach_the_valid_area_alone() -> None:
    router = telling(condconv.PooledLinear(2, 3))
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    with condconv.valid_area([(3, 2)], (4, 4)):
        router(x).sum().backward()
    assert x.grad is not None
    reached = x.grad[0, 0] != 0
    assert reached[:3, :2].all() and reached.sum() == 6


def test_what_is_no_batch_of_these_images_is_refused() -> None:
    router = condconv.PooledLinear(2, 3)
    with condconv.valid_area([(3, 2), (4, 4)], (4, 4)):
        with pytest.raises(ShapeError, match=r"of 2 images holds, and .* has 5 examples; run what regroups its batch"):
            router(torch.randn(5, 2, 4, 4))
        with pytest.raises(ShapeError, match="has no height and width"):
            router(torch.randn(2, 2, 16))
        assert router(torch.randn(2, 2)).shape == (2, 3)  # nothing to pool
    outside = pytest.raises(ArgumentError, match=r"valid_area: sizes=.* must lie in 1 … 4 and 1 … 6")
    with outside, condconv.valid_area([(5, 2)], (4, 6)):
        pass
    fractions = pytest.raises(ArgumentError, match=r"must be whole numbers \(B, 2\)")
    with fractions, condconv.valid_area([(0.5, 2.0)], (4, 6)):
        pass
