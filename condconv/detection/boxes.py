"""Boxes as offsets from default boxes, and detections from a network's outputs.

SSD (https://arxiv.org/abs/1512.02325, equation 2): with the default box d and the object's box g, both as centre x,
centre y, width, height, the offsets are

    ((gx − dx) / dw, (gy − dy) / dh) / 0.1        (log(gw / dw), log(gh / dh)) / 0.2

A = default boxes, B = images, D = detections of one image, M = objects of one image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, clip_boxes_to_image

from condconv.arguments import choice
from condconv.errors import ShapeError, argument_error
from condconv.models.ssd import SSDOutput

_CENTRE_VARIANCE, _SIZE_VARIANCE = 0.1, 0.2
_MAX_LOG_SCALE = math.log(1000.0)  # keeps exp() of an untrained network's output finite


class Detections(NamedTuple):
    """What was found in one image, best first: ``boxes`` (D, 4) as x1, y1, x2, y2 in pixels, ``scores`` (D,) in [0, 1]
    and ``labels`` (D,) from 1 (0 is the background).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Objects' boxes (A, 4) as x1, y1, x2, y2, one for each default box (A, 4) as cx, cy, w, h → offsets (A, 4)."""
    centred = box_convert(boxes, "xyxy", "cxcywh")
    centre = (centred[..., :2] - anchors[..., :2]) / anchors[..., 2:] / _CENTRE_VARIANCE
    size = torch.log(centred[..., 2:] / anchors[..., 2:]) / _SIZE_VARIANCE
    return torch.cat([centre, size], -1)


def decode_boxes(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Offsets (*, A, 4) and default boxes (A, 4) as cx, cy, w, h → boxes (*, A, 4) as x1, y1, x2, y2."""
    centre = offsets[..., :2] * _CENTRE_VARIANCE * anchors[..., 2:] + anchors[..., :2]
    size = torch.exp((offsets[..., 2:] * _SIZE_VARIANCE).clamp(max=_MAX_LOG_SCALE)) * anchors[..., 2:]
    return box_convert(torch.cat([centre, size], -1), "cxcywh", "xyxy")


@torch.no_grad()
def detect(
    output: SSDOutput,
    anchors: Tensor,
    image_size: tuple[int, int],
    *,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.6,
    max_detections: int = 100,
    max_candidates: int = 400,
    scores: str = "softmax",
) -> list[Detections]:
    """Turn a network's outputs into detections: scores, threshold, non-maximum suppression in each class.

    Args:
        output: of `condconv.models.SSD`, for B images.
        anchors: the network's default boxes (A, 4), ``model.anchors(image_size)``.
        image_size: (H, W) in pixels; boxes are scaled and clipped to it.
        score_threshold: detections with a lower probability are dropped.
        iou_threshold: of two boxes of one class that overlap more, the worse is dropped.
        max_detections: at most so many for each image.
        max_candidates: at most so many (box, class) pairs of each image enter the suppression, best first.
        scores: "softmax" for a network that `MultiBoxLoss` has trained, "sigmoid" for one of `FocalLoss`.

    Returns:
        One `Detections` for each image.

    Raises:
        ArgumentError: a threshold outside [0, 1] or a limit below one.
        ShapeError: outputs and default boxes do not belong together.
    """
    choice("detect", "scores", scores, ("softmax", "sigmoid"))
    _check(output, anchors, score_threshold, iou_threshold, max_detections, max_candidates)
    height, width = image_size
    scale = anchors.new_tensor([width, height, width, height])
    boxes = decode_boxes(output.box_offsets.float(), anchors) * scale  # (B, A, 4)
    logits = output.class_logits.float()
    probabilities = logits.softmax(-1)[..., 1:] if scores == "softmax" else logits[..., 1:].sigmoid()
    found = []
    for image_boxes, image_scores in zip(boxes, probabilities, strict=True):  # (A, 4), (A, classes without background)
        image_boxes = clip_boxes_to_image(image_boxes, image_size)
        anchor, label = torch.nonzero(image_scores > score_threshold, as_tuple=True)
        score = image_scores[anchor, label]
        best = score.topk(min(max_candidates, len(score))).indices
        candidates = Detections(image_boxes[anchor[best]], score[best], label[best] + 1)
        kept = batched_nms(candidates.boxes, candidates.scores, candidates.labels, iou_threshold)[:max_detections]
        found.append(Detections(*(part[kept] for part in candidates)))
    return found


def _check(
    output: SSDOutput, anchors: Tensor, score_threshold: float, iou_threshold: float, detections: int, candidates: int
) -> None:
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not 0 <= value <= 1:
            raise argument_error("detect", name, value, "must lie in [0, 1]", "probabilities and overlaps do")
    for name, limit in (("max_detections", detections), ("max_candidates", candidates)):
        if limit < 1:
            raise argument_error("detect", name, limit, "must be at least 1", "pass how many boxes an image may have")
    if output.box_offsets.shape[1:] != anchors.shape or output.class_logits.shape[:2] != output.box_offsets.shape[:2]:
        raise ShapeError(
            f"detect: logits {tuple(output.class_logits.shape)} and offsets {tuple(output.box_offsets.shape)} do not "
            f"belong to default boxes {tuple(anchors.shape)}; pass model.anchors(image_size) of the same image size"
        )
