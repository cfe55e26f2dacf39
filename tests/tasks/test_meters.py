"""The loss of a validation set is the mean over its images, whatever batches they came in."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from condconv.tasks.classify.task import ClassificationMeter


@pytest.mark.parametrize("sizes", [(16, 16, 16), (20, 20, 8), (47, 1)])
def test_the_last_batch_counts_as_its_images_do(sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(48, 5, generator=generator), torch.randint(5, (48,), generator=generator)
    meter = ClassificationMeter()
    for output, wanted in zip(logits.split(sizes), labels.split(sizes), strict=True):
        meter.update(output, [None, wanted])
    right = (logits.argmax(dim=1) == labels).float().mean()
    expected = {"val_loss": float(F.cross_entropy(logits, labels)), "val_accuracy": float(right)}
    assert meter.compute() == pytest.approx(expected, abs=1e-6)
