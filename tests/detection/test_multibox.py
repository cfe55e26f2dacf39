"""Boxes, matching, the loss, and detections."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from condconv.detection import FocalLoss, MultiBoxLoss, decode_boxes, detect, encode_boxes, match_anchors
from condconv.errors import ArgumentError, ShapeError
from condconv.models import SSDOutput, create_model, make_anchors

SIZE = (100, 200)  # H, W


@pytest.fixture
def anchors() -> Tensor:
    return make_anchors([(4, 4), (2, 2)])


def random_boxes(number: int) -> Tensor:
    corner = torch.rand(number, 2) * 0.5
    return torch.cat([corner, corner + 0.1 + torch.rand(number, 2) * 0.4], 1)


def perfect_output(anchors: Tensor, boxes: Tensor, labels: Tensor, classes: int) -> SSDOutput:
    """What a network would say that has learned this one image by heart."""
    match = match_anchors(anchors, boxes)
    wanted = torch.cat([labels, torch.zeros(1, dtype=torch.long)])[match]
    logits = 20.0 * F.one_hot(wanted, classes + 1).float()
    offsets = encode_boxes(boxes[match.clamp(min=0)], anchors)
    return SSDOutput(logits[None], offsets[None])


def test_encoding_is_the_papers(anchors: Tensor) -> None:
    anchor = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = torch.tensor([[0.5, 0.4, 0.7, 0.8]])  # centre (0.6, 0.6), size (0.2, 0.4)
    assert torch.allclose(encode_boxes(box, anchor), torch.tensor([[5.0, 2.5, 0.0, 0.0]]), atol=1e-5)
    wide = torch.tensor([[0.3, 0.3, 0.7, 0.7]])
    assert encode_boxes(wide, anchor)[0, 2] == pytest.approx(math.log(2) / 0.2)


def test_decoding_undoes_encoding(anchors: Tensor) -> None:
    boxes = random_boxes(len(anchors))
    assert torch.allclose(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, atol=1e-5)
    assert decode_boxes(torch.full((1, 4), 1e6), anchors[:1]).isfinite().all()


def test_every_object_gets_a_default_box_even_below_the_threshold(anchors: Tensor) -> None:
    tiny = torch.tensor([[0.10, 0.10, 0.12, 0.12], [0.80, 0.80, 0.82, 0.82]])
    match = match_anchors(anchors, tiny)
    assert sorted(match[match >= 0].tolist()) == [0, 1]


def test_two_objects_in_one_place_get_two_default_boxes(anchors: Tensor) -> None:
    same = torch.tensor([[0.10, 0.10, 0.12, 0.12]] * 2)
    match = match_anchors(anchors, same)
    assert {0, 1} == set(match[match >= 0].tolist())


def test_without_objects_all_is_background(anchors: Tensor) -> None:
    assert (match_anchors(anchors, torch.zeros(0, 4)) == -1).all()


def test_loss_is_the_formula_on_a_case_done_by_hand() -> None:
    """Two default boxes, one object on the first: one positive, and the other is the hardest negative."""
    anchors = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
    logits = torch.tensor([[[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]])
    offsets = torch.tensor([[[0.5, 0.0, 2.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]])  # of an image 100 high and 200 wide: the left half exactly
    loss = MultiBoxLoss()(SSDOutput(logits, offsets), anchors, [box], [torch.tensor([1])], SIZE)
    softmax = logits.softmax(-1)
    assert loss.classification.item() == pytest.approx(-math.log(softmax[0, 0, 1]) - math.log(softmax[0, 1, 0]))
    assert loss.localisation.item() == pytest.approx(0.5 * 0.5**2 + (2.0 - 0.5))


def test_negatives_are_three_for_each_positive_and_the_hardest() -> None:
    anchors = torch.rand(20, 4) * 0.1 + torch.tensor([0.6, 0.6, 0.1, 0.1])
    anchors[0] = torch.tensor([0.2, 0.2, 0.2, 0.2])
    logits = torch.zeros(1, 20, 2)
    logits[0, 1:, 1] = torch.arange(19.0)  # the later, the surer of a class that is not there
    box = torch.tensor([[0.1, 0.1, 0.3, 0.3]]) * torch.tensor([200.0, 100.0, 200.0, 100.0])
    loss = MultiBoxLoss()(SSDOutput(logits, torch.zeros(1, 20, 4)), anchors, [box], [torch.tensor([1])], SIZE)
    entropy = F.cross_entropy(logits[0], torch.tensor([1] + [0] * 19), reduction="none")
    assert loss.classification.item() == pytest.approx(float(entropy[0] + entropy[-3:].sum()))


def test_a_perfect_output_has_almost_no_loss_and_gives_the_boxes_back(anchors: Tensor) -> None:
    boxes, labels = torch.tensor([[0.0, 0.0, 0.4, 0.5], [0.5, 0.4, 1.0, 1.0]]), torch.tensor([2, 1])
    pixels = boxes * torch.tensor([200.0, 100.0, 200.0, 100.0])
    output = perfect_output(anchors, boxes, labels, classes=2)
    loss = MultiBoxLoss()(output, anchors, [pixels], [labels], SIZE)
    assert sum(loss).item() < 1e-3
    (found,) = detect(output, anchors, SIZE, score_threshold=0.5)
    order = found.labels.argsort(descending=True)
    assert found.labels[order].tolist() == [2, 1]
    assert torch.allclose(found.boxes[order], pixels, atol=1e-2)
    assert (found.scores > 0.99).all()


def test_detections_are_sorted_limited_clipped_and_thresholded(anchors: Tensor) -> None:
    output = SSDOutput(torch.randn(2, len(anchors), 4) * 3, torch.randn(2, len(anchors), 4))
    for found in detect(output, anchors, SIZE, score_threshold=0.3, max_detections=5):
        assert len(found.boxes) <= 5
        assert (found.scores.diff() <= 0).all() and (found.scores > 0.3).all()
        assert (found.boxes >= 0).all() and (found.boxes[:, 0::2] <= 200).all() and (found.boxes[:, 1::2] <= 100).all()
        assert ((found.labels >= 1) & (found.labels <= 3)).all()


def test_a_network_learns_one_image() -> None:
    torch.manual_seed(0)
    model = create_model("condconv_ssd_mobilenetv1_050", num_classes=2, num_experts=2)
    images, size = torch.randn(2, 3, 64, 64), (64, 64)
    anchors = model.anchors(size)
    boxes = [torch.tensor([[5.0, 5.0, 30.0, 30.0]]), torch.tensor([[20.0, 10.0, 60.0, 50.0], [0.0, 40.0, 20.0, 60.0]])]
    labels = [torch.tensor([1]), torch.tensor([2, 1])]
    criterion, optimiser = MultiBoxLoss(), torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = sum(criterion(model(images), anchors, boxes, labels, size))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


def test_an_image_without_objects_still_teaches(anchors: Tensor) -> None:
    logits = torch.zeros(1, len(anchors), 3, requires_grad=True)
    output = SSDOutput(logits, torch.zeros(1, len(anchors), 4))
    loss = MultiBoxLoss()(output, anchors, [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)], SIZE)
    loss.classification.backward()
    assert loss.localisation.item() == 0
    assert (logits.grad.abs().sum(-1) > 0).sum() == 3


@pytest.mark.parametrize(
    ("boxes", "labels", "error", "words"),
    [
        ([[10.0, 10.0, 10.0, 20.0]], [1], ArgumentError, "image 0: box 0 .* has no area"),
        ([[0.0, 0.0, float("nan"), 20.0]], [1], ArgumentError, "image 0: box 0"),
        ([[0.0, 0.0, 10.0, 20.0]], [3], ArgumentError, r"labels from 3 to 3; they must lie in 1\.\.2"),
        ([[0.0, 0.0, 10.0, 20.0]], [0], ArgumentError, "0 being the background"),
        ([[0.0, 0.0, 10.0, 20.0]], [1, 2], ShapeError, r"boxes \(1, 4\) for 2 labels"),
    ],
)
def test_bad_annotations_are_named(
    anchors: Tensor, boxes: list[Any], labels: list[int], error: type, words: str
) -> None:
    output = SSDOutput(torch.zeros(1, len(anchors), 3), torch.zeros(1, len(anchors), 4))
    with pytest.raises(error, match=words):
        MultiBoxLoss()(output, anchors, [torch.tensor(boxes)], [torch.tensor(labels)], SIZE)


def test_outputs_of_another_image_size_are_named(anchors: Tensor) -> None:
    output = SSDOutput(torch.zeros(1, 5, 3), torch.zeros(1, 5, 4))
    with pytest.raises(ShapeError, match=r"model\.anchors\(image_size\)"):
        detect(output, anchors, SIZE)
    with pytest.raises(ShapeError, match=r"model\.anchors\(image_size\)"):
        MultiBoxLoss()(output, anchors, [torch.zeros(0, 4)], [torch.zeros(0)], SIZE)


@pytest.mark.parametrize("option", [{"score_threshold": 2.0}, {"iou_threshold": -1.0}, {"max_detections": 0}])
def test_bad_options_are_named(anchors: Tensor, option: dict[str, Any]) -> None:
    output = SSDOutput(torch.zeros(1, len(anchors), 3), torch.zeros(1, len(anchors), 4))
    with pytest.raises(ArgumentError, match=next(iter(option))):
        detect(output, anchors, SIZE, **option)


def test_the_focal_loss_is_the_formula(anchors: Tensor) -> None:
    torch.manual_seed(0)
    output = SSDOutput(torch.randn(1, len(anchors), 4), torch.randn(1, len(anchors), 4))
    boxes, labels = random_boxes(3), torch.tensor([1, 3, 2])
    scale = torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    parts = FocalLoss()(output, anchors, [boxes * scale], [labels], SIZE)
    match = match_anchors(anchors, boxes)
    classification = localisation = 0.0
    for anchor, found in enumerate(match.tolist()):
        for kind in (1, 2, 3):
            p = 1 / (1 + math.exp(-float(output.class_logits[0, anchor, kind])))
            if found >= 0 and int(labels[found]) == kind:
                classification -= 0.75 * (1 - p) ** 2 * math.log(p)
            else:
                classification -= 0.25 * p**2 * math.log(1 - p)
        if found >= 0:
            wanted = encode_boxes(boxes[found][None], anchors[anchor][None])[0]
            for d in (output.box_offsets[0, anchor] - wanted).abs().tolist():
                localisation += 0.5 * d**2 if d < 1 else d - 0.5
    count = int((match >= 0).sum())
    assert float(parts.classification) == pytest.approx(classification / count, rel=1e-4)
    assert float(parts.localisation) == pytest.approx(localisation / 4 / count, rel=1e-4)


def test_scores_follow_the_loss(anchors: Tensor) -> None:
    boxes, labels = torch.tensor([[0.1, 0.1, 0.45, 0.5], [0.55, 0.5, 0.9, 0.95]]), torch.tensor([1, 2])
    scale = torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    output = perfect_output(anchors, boxes, labels, 2)
    output = output._replace(class_logits=output.class_logits - 10)
    logits = output.class_logits.clone().requires_grad_()
    parts = FocalLoss()(output._replace(class_logits=logits), anchors, [boxes * scale], [labels], SIZE)
    assert float(parts.classification) < 1e-3 and float(parts.localisation) < 1e-3
    parts.classification.backward()
    assert logits.grad is not None and not logits.grad[..., 0].any()  # the background has no logit of its own
    (found,) = detect(output, anchors, SIZE, scores="sigmoid", score_threshold=0.5)
    assert sorted(found.labels.tolist()) == [1, 2] and float(found.scores.min()) > 0.99
    order = found.labels.argsort()
    assert torch.allclose(found.boxes[order], boxes * scale, atol=0.1)
    # All logits low: nothing by sigmoids, something by the softmax, which has to be sure of one class.
    low = output._replace(class_logits=torch.full_like(output.class_logits, -8.0))
    assert len(detect(low, anchors, SIZE, scores="sigmoid")[0].scores) == 0
    assert len(detect(low, anchors, SIZE)[0].scores) > 0
    with pytest.raises(ArgumentError, match="scores='relu' must be one of softmax, sigmoid"):
        detect(output, anchors, SIZE, scores="relu")


def test_a_detector_for_sigmoids_starts_with_rare_objects() -> None:
    model = create_model("condconv_ssd_mobilenetv1_050", num_classes=2, num_experts=2, class_prior=0.01).eval()
    with torch.no_grad():
        scores = model(torch.rand(1, 3, 64, 64)).class_logits.sigmoid()
    assert float(scores.mean()) == pytest.approx(0.01, rel=0.2)
    with pytest.raises(ArgumentError, match="class_prior=0.7"):
        create_model("ssd_mobilenetv1_050", class_prior=0.7)
