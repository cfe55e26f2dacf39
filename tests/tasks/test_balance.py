"""Classes of unequal size: weights of the loss, and epochs in which all classes are as frequent."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from condconv.data import Source, TensorImages, open_source
from condconv.errors import ArgumentError
from condconv.runs.config import TrainConfig
from condconv.tasks import task_of, tasks
from condconv.tasks.classify.task import class_weights
from condconv.training.datamodule import SourceDataModule


@pytest.fixture
def unequal() -> Source:
    """The digits, with 40 images of 0, 10 of 1 and 2 of 2."""
    source = open_source("digits")
    assert isinstance(source.train, TensorImages)
    labels = source.train.labels
    chosen = torch.cat([(labels == label).nonzero().flatten()[:count] for label, count in enumerate((40, 10, 2))])
    train = TensorImages(source.train.images[chosen], labels[chosen], "few")
    return replace(source, train=train, classes=("0", "1", "2", "never"))


def test_every_class_weighs_as_much_and_an_image_1_in_the_mean() -> None:
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 2)
    weights = class_weights(labels, 4)
    totals = torch.stack([weights[labels[labels == label]].sum() for label in range(3)])
    torch.testing.assert_close(totals, torch.full((3,), 52 / 3))
    assert float(weights[labels].mean()) == pytest.approx(1) and weights.isfinite().all()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_weighted(unequal: Source, mixed: bool) -> None:
    task = task_of(TrainConfig(data="x", balance="loss", label_smoothing=0.0))
    plain = task_of(TrainConfig(data="x", label_smoothing=0.0))
    task.prepared(unequal), plain.prepared(unequal)
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 2])
    blend = [labels.flip(0), torch.full((6,), 0.75)] if mixed else []
    batch = [torch.zeros(6), labels, labels, labels >= 0, *blend]
    weights = class_weights(unequal.train.labels, 4)
    each = F.cross_entropy(logits, labels, reduction="none")
    if mixed:
        other = F.cross_entropy(logits, blend[0], reduction="none")
        expected = (0.75 * weights[labels] * each + 0.25 * weights[blend[0]] * other).mean()
    else:
        expected = (weights[labels] * each).sum() / weights[labels].sum()
    torch.testing.assert_close(task.loss(logits, batch), expected)
    assert not torch.isclose(task.loss(logits, batch), plain.loss(logits, batch))


def test_balanced_sampling_is_of_training_alone(unequal: Source) -> None:
    task = task_of(TrainConfig(data="x", balance="sampling"))
    data = SourceDataModule(unequal, task, batch_size=1, workers=0)
    keys = list(data.train_dataloader().sampler)
    assert Counter(unequal.train.labels[[key.place for key in keys]].tolist()) == {0: 18, 1: 17, 2: 17}
    assert [key.place for key in data.val_dataloader().sampler] == list(range(len(unequal.val)))


def test_one_way_at_a_time_and_not_for_other_tasks() -> None:
    with pytest.raises(ArgumentError, match="unknown balance 'both'"):
        TrainConfig(data="x", balance="both")
    for name in set(tasks()) - {"classify"}:
        with pytest.raises(ArgumentError, match=f"balance='loss' says nothing to --task {name}"):
            task_of(TrainConfig(data="x", task=name, balance="loss"))
