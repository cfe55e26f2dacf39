"""The two losses of SSD: that of its paper, and that of the TensorFlow Object Detection API's later configurations.

    L = (L_classification + L_localisation) / N,    N = number of default boxes that are matched to an object

* `MultiBoxLoss` (https://arxiv.org/abs/1512.02325, equations 1 to 3): classification is a softmax cross entropy over
  the matched boxes and the hardest unmatched ones, three for each match; localisation is a smooth L1 over the matched
  boxes' offsets.
* `FocalLoss` (https://arxiv.org/abs/1708.02002): classification is a sigmoid for each class over all boxes, those that
  are right already weighing little, α = 0.75 and γ = 2; the background is the absence of all classes, and its logit is
  not used. Localisation is the same, divided by the four offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, sigmoid_focal_loss

from condconv.detection.boxes import encode_boxes
from condconv.errors import ArgumentError, ShapeError, argument_error
from condconv.models.ssd import SSDOutput


class MultiBoxLosses(NamedTuple):
    """The two parts of the loss, scalars; their sum is minimised."""

    classification: Tensor
    localisation: Tensor


def match_anchors(anchors: Tensor, boxes: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """Which object each default box stands for: its index in ``boxes``, or −1 for background; (A,).

    A default box is matched to the object that it overlaps most, if the overlap reaches the threshold. Every object
    besides gets the default box that overlaps it most, whatever the overlap.

    Args:
        anchors: (A, 4) as cx, cy, w, h.
        boxes: (M, 4) as x1, y1, x2, y2, in the same unit.
        iou_threshold: intersection over union.
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.long, device=anchors.device)
    overlap = box_iou(boxes, box_convert(anchors, "cxcywh", "xyxy"))  # (M, A)
    best, objects = overlap.max(0)
    matches = torch.where(best >= iou_threshold, objects, -1)
    # Where two objects want the same default box the one that overlaps it more takes it, the other its next best.
    for _ in range(len(boxes)):
        flat = int(overlap.argmax())
        chosen, anchor = divmod(flat, overlap.shape[1])
        matches[anchor] = chosen
        overlap[chosen] = -1
        overlap[:, anchor] = -1
    return matches


class _SSDLoss(nn.Module):
    """What both losses have in common: which default boxes stand for objects, and the offsets of these."""

    _box_weight = 1.0

    def __init__(self, iou_threshold: float) -> None:
        super().__init__()
        if not 0 < iou_threshold <= 1:
            name = type(self).__name__
            raise argument_error(name, "iou_threshold", iou_threshold, "must lie in (0, 1]", "SSD uses 0.5")
        self.iou_threshold = iou_threshold

    def forward(
        self,
        output: SSDOutput,
        anchors: Tensor,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_size: tuple[int, int],
    ) -> MultiBoxLosses:
        """Compute both parts of the loss for B images.

        Args:
            output: of `condconv.models.SSD`.
            anchors: the network's default boxes (A, 4).
            boxes: for each image its objects (M, 4) as x1, y1, x2, y2 in pixels.
            labels: for each image its objects' classes (M,), from 1.
            image_size: (H, W) in pixels.

        Raises:
            ArgumentError: a box of no area or a class out of range; the message names image and box.
            ShapeError: lists of different lengths, or outputs that do not belong to the default boxes.
        """
        positive, classes, targets = _match(output, anchors, boxes, labels, image_size, self.iou_threshold)
        count = positive.sum().clamp(min=1)
        localisation = F.smooth_l1_loss(output.box_offsets[positive].float(), targets, reduction="sum")
        classification = self._classification(output.class_logits.float(), positive, classes)
        return MultiBoxLosses(classification / count, self._box_weight * localisation / count)

    def _classification(self, logits: Tensor, positive: Tensor, classes: Tensor) -> Tensor:
        """The sum over images and default boxes; logits (B, A, num_classes + 1), positive and classes (B, A)."""
        raise NotImplementedError


class MultiBoxLoss(_SSDLoss):
    """The loss of SSD.

    Args:
        iou_threshold: overlap from which a default box counts as an object.
        negatives_per_positive: unmatched default boxes that enter the classification loss, for each matched one.
        min_negatives: at least so many for each image, so that images without objects teach something.
    """

    def __init__(self, iou_threshold: float = 0.5, negatives_per_positive: int = 3, min_negatives: int = 3) -> None:
        super().__init__(iou_threshold)
        self.negatives_per_positive = negatives_per_positive
        self.min_negatives = min_negatives

    def _classification(self, logits: Tensor, positive: Tensor, classes: Tensor) -> Tensor:
        entropy = F.cross_entropy(logits.transpose(1, 2), classes, reduction="none")  # (B, A)
        hardness = entropy.detach().masked_fill(positive, -torch.inf)
        rank = hardness.argsort(1, descending=True).argsort(1)
        wanted = (self.negatives_per_positive * positive.sum(1, keepdim=True)).clamp(min=self.min_negatives)
        selected = positive | ((rank < wanted) & ~positive)
        return (entropy * selected).sum()


class FocalLoss(_SSDLoss):
    """The sigmoid loss; see the module's docstring. Detections of such a network are `detect(…, scores="sigmoid")`.

    Args:
        iou_threshold: overlap from which a default box counts as an object.
        alpha: weight of objects, that of the background being 1 − alpha.
        gamma: 0 weighs all boxes alike; above, those that are wrong weigh more.
    """

    _box_weight = 0.25

    def __init__(self, iou_threshold: float = 0.5, alpha: float = 0.75, gamma: float = 2.0) -> None:
        super().__init__(iou_threshold)
        self.alpha = alpha
        self.gamma = gamma

    def _classification(self, logits: Tensor, positive: Tensor, classes: Tensor) -> Tensor:
        wanted = F.one_hot(classes, logits.shape[2]).to(logits)[..., 1:]
        loss: Tensor = sigmoid_focal_loss(logits[..., 1:], wanted, self.alpha, self.gamma, reduction="sum")
        return loss


def _match(
    output: SSDOutput,
    anchors: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    image_size: tuple[int, int],
    iou_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What B images have to teach: which default boxes stand for objects (B, A), the class of each, 0 for background
    (B, A), and the P objects' offsets (P, 4) in their order. Errors are those of both losses.
    """
    _check(output, anchors, boxes, labels)
    height, width = image_size
    scale = anchors.new_tensor([width, height, width, height])
    matched, classes, targets = [], [], []
    for image_boxes, image_labels in zip(boxes, labels, strict=True):
        fractions = image_boxes.to(anchors) / scale
        match = match_anchors(anchors, fractions, iou_threshold)
        positive = match >= 0
        padded = torch.cat([image_labels.to(match.device, torch.long), match.new_zeros(1)])
        matched.append(positive)
        classes.append(padded[match])  # index −1 is the background
        targets.append(encode_boxes(fractions[match[positive]], anchors[positive]))
    return torch.stack(matched), torch.stack(classes), torch.cat(targets)


def _check(output: SSDOutput, anchors: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
    batch, _, classes = output.class_logits.shape
    if output.box_offsets.shape != (batch, *anchors.shape) or output.class_logits.shape[1] != len(anchors):
        raise ShapeError(
            f"loss of SSD: logits {tuple(output.class_logits.shape)} and offsets {tuple(output.box_offsets.shape)} do "
            f"not belong to default boxes {tuple(anchors.shape)}; pass model.anchors(image_size) of the same image size"
        )
    if not len(boxes) == len(labels) == batch:
        raise ShapeError(
            f"loss of SSD: {batch} images, {len(boxes)} lists of boxes, {len(labels)} of labels; pass one each"
        )
    for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        if image_boxes.shape != (len(image_labels), 4):
            raise ShapeError(
                f"loss of SSD: image {image}: boxes {tuple(image_boxes.shape)} for {len(image_labels)} labels; "
                "boxes must be (M, 4) with one label each"
            )
        bad = ~((image_boxes[:, 2:] > image_boxes[:, :2]).all(1) & image_boxes.isfinite().all(1))
        if bad.any():
            box = int(bad.nonzero()[0])
            raise ArgumentError(
                f"loss of SSD: image {image}: box {box} {image_boxes[box].tolist()} has no area; boxes are x1, y1, "
                "x2, y2 with x1 < x2 and y1 < y2; drop it from the annotations"
            )
        if len(image_labels) == 0:
            continue
        low, high = int(image_labels.min()), int(image_labels.max())
        if low < 1 or high >= classes:
            raise ArgumentError(
                f"loss of SSD: image {image}: labels from {low} to {high}; they must lie in 1..{classes - 1}, 0 being "
                "the background"
            )
