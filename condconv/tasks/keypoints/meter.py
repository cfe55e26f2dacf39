"""Loss, average precision and distances of an epoch, over the instances of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed
from torch import Tensor, nn
from torchmetrics import MeanMetric

from condconv.data import Source
from condconv.tasks.base import Batch, counted
from condconv.tasks.keypoints.evaluator import KeypointEvaluator, located


class KeypointMeter(nn.Module):
    """See the module's docstring; `loss` is that of the task."""

    def __init__(self, source: Source, loss: Callable[[Any, Batch], Tensor]) -> None:
        super().__init__()
        self.source = source
        self.loss_of = loss
        self.loss = MeanMetric(nan_strategy="disable")
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.loss.reset()
        self.evaluator = KeypointEvaluator(self.source)

    def update(self, output: Any, batch: Batch) -> None:
        """Add a batch."""
        if indices := counted(batch):
            images, joints, *_ = batch
            loss = self.loss_of(output[indices], [images[indices], joints[indices]])
            self.loss.update(loss.expand(len(indices)))
        self.evaluator.add(output, batch)

    def compute(self) -> dict[str, float]:
        """The validation columns."""
        mine = (self.evaluator.places, self.evaluator.joints)
        everyone: list[Any] = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
        places = [place for theirs, _ in everyone for place in theirs]
        joints = [found for _, theirs in everyone for found in theirs]
        return {"val_loss": float(self.loss.compute()), **located(self.source, places, joints).summary}
