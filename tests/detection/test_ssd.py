"""The SSD network: its maps, its default boxes, its outputs' order."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from condconv.errors import ShapeError
from condconv.models import SSD, create_model, make_anchors

SIZES = [(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]


@pytest.fixture(scope="module")
def model() -> SSD:
    torch.manual_seed(0)
    return cast(SSD, create_model("condconv_ssd_mobilenetv1_050", num_classes=3, num_experts=2).eval())


def test_six_maps_at_300_pixels(model: SSD) -> None:
    maps = model.feature_maps(torch.randn(1, 3, 300, 300))
    assert [tuple(m.shape[-2:]) for m in maps] == SIZES == model.map_sizes((300, 300))
    assert [m.shape[1] for m in maps] == [256, 512, 256, 128, 128, 64]


@pytest.mark.parametrize("size", [(96, 128), (128, 97)])
def test_outputs_belong_to_the_default_boxes_at_other_sizes(model: SSD, size: tuple[int, int]) -> None:
    output = model(torch.randn(2, 3, *size))
    anchors = model.anchors(size)
    assert output.class_logits.shape == (2, len(anchors), 4)
    assert output.box_offsets.shape == (2, len(anchors), 4)


def test_1917_default_boxes_of_the_stated_shapes(model: SSD) -> None:
    anchors = model.anchors((300, 300))
    assert anchors.shape == (1917, 4)
    assert torch.allclose(anchors[:3, 2:], torch.tensor([[0.1, 0.1], [0.2828, 0.1414], [0.1414, 0.2828]]), atol=1e-4)
    assert torch.allclose(anchors[-6, 2:], torch.tensor([0.95, 0.95]))
    assert torch.allclose(anchors[-1, 2:], torch.tensor([0.95, 1.0]).prod().sqrt().expand(2))
    assert torch.allclose(anchors[0, :2], torch.tensor([0.5, 0.5]) / 19)


def test_default_boxes_run_along_a_row_first() -> None:
    anchors = make_anchors([(2, 3)])
    centres = anchors.reshape(6, 3, 4)[:, 0, :2]
    expected = [[x / 6, y / 4] for y in (1, 3) for x in (1, 3, 5)]
    assert torch.allclose(centres, torch.tensor(expected))


def test_a_changed_pixel_of_a_map_moves_the_outputs_of_its_own_default_boxes(model: SSD) -> None:
    predictors = cast("list[torch.nn.Conv2d]", model.class_predictors)
    maps = [torch.zeros(1, p.in_channels, *size) for p, size in zip(predictors, SIZES, strict=True)]
    maps[1][0, :, 4, 7] = 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "feature_maps", lambda _: maps)
        output = model(torch.zeros(1, 3, 300, 300))
    changed = (output.box_offsets[0] != 0).any(1).nonzero().flatten()
    centres = model.anchors((300, 300))[changed, :2]
    assert len(changed) == 6
    assert torch.allclose(centres, torch.tensor([7.5 / 10, 4.5 / 10]).expand(6, 2))


def test_wrong_images_are_named(model: SSD) -> None:
    with pytest.raises(ShapeError, match=r"\(3, 300, 300\) must be \(B, 3, H, W\)"):
        model(torch.zeros(3, 300, 300))
    with pytest.raises(ShapeError, match="in_chans"):
        model(torch.zeros(1, 1, 300, 300))
