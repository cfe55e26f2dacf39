"""Detection: from a detector's outputs to boxes, and the loss that trains it. The network is `condconv.models.SSD`."""

from condconv.detection.boxes import Detections, decode_boxes, detect, encode_boxes
from condconv.detection.loss import FocalLoss, MultiBoxLoss, MultiBoxLosses, match_anchors
from condconv.detection.padding import route_over_images

__all__ = [
    "Detections",
    "FocalLoss",
    "MultiBoxLoss",
    "MultiBoxLosses",
    "decode_boxes",
    "detect",
    "encode_boxes",
    "match_anchors",
    "route_over_images",
]
