"""Loss and average precision of an epoch, over the images of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed
from torch import Tensor, nn
from torchmetrics import MeanMetric

from condconv.data import Source
from condconv.tasks.base import Batch, counted
from condconv.tasks.detect.average_precision import average_precision
from condconv.tasks.detect.detectors import Detector
from condconv.tasks.detect.evaluator import DetectionEvaluator


class DetectionMeter(nn.Module):
    """See the module's docstring; `loss` is that of the task, None where validation has none."""

    def __init__(self, source: Source, detector: Detector, loss: Callable[[Any, Batch], Tensor] | None) -> None:
        super().__init__()
        self.source = source
        self.detector = detector
        self.loss_of = loss
        self.loss = MeanMetric(nan_strategy="disable")
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.loss.reset()
        self.found = DetectionEvaluator(self.source, self.detector)

    def update(self, output: Any, batch: Batch) -> None:
        """Add a batch."""
        indices = counted(batch)
        if self.loss_of is not None and indices:
            images, objects, *_ = batch
            kept = [images[indices], [objects[index] for index in indices]]
            loss = self.loss_of(type(output)(*(part[indices] for part in output)), kept)
            self.loss.update(loss.expand(len(indices)))
        self.found.add(output, batch)

    def compute(self) -> dict[str, float]:
        """The validation columns."""
        mine = (self.found.truths, self.found.detections)
        everyone: list[Any] = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
        truths = [objects for theirs, _ in everyone for objects in theirs]
        detections = [found for _, theirs in everyone for found in theirs]
        precision = average_precision(truths, detections, self.source.classes)
        loss = {} if self.loss_of is None else {"val_loss": float(self.loss.compute())}
        return loss | precision.summary
