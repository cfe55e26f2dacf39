"""A network on labelled images: what it gets right, what it takes for what, and where it is surest and wrong."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from condconv.data import IGNORED, EpochSampler, ImageView, Source
from condconv.errors import ArgumentError, DataError
from condconv.signals import leave_signals_to_parent

MISTAKES = 25
TOP = 5


class Mistake(NamedTuple):
    """One image that is classified wrong: how sure the network is, which image, and both classes."""

    confidence: float
    place: int
    true: int
    predicted: int


@dataclass(frozen=True)
class Evaluation:
    """Top-1 and top-5 accuracy over all images; `confusion` int64 (true class, predicted class); `mistakes` the surest
    first; `damaged` the files that could not be decoded.
    """

    top1: float
    top5: float
    confusion: Tensor
    mistakes: list[Mistake]
    damaged: list[str]

    @property
    def images(self) -> int:
        """How many images count."""
        return int(self.confusion.sum())

    @property
    def of_class(self) -> Tensor:
        """Accuracy of each class: (classes,), NaN for one without images."""
        return self.confusion.diag() / self.confusion.sum(dim=1)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    source: Source,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Run a network over the validation images of a set.

    Args:
        network: images (B, C, H, W) → logits (B, classes); put on `device` and into eval mode.
        source: its validation images are used, prepared as it says.
        batch_size: images of one step.
        workers: loader processes.
        device: where to compute.
        skip_bad: leave out images that cannot be decoded, and name them, instead of stopping.
        progress: is told how many images are done, and of how many.

    Raises:
        ArgumentError: the network has another number of classes than the set.
        DataError: an image cannot be decoded, or none can.
    """
    network.to(device).eval()
    classes = len(source.classes)
    top1, top5 = (MulticlassAccuracy(classes, top_k=min(k, classes), average="micro").to(device) for k in (1, TOP))
    confusion = MulticlassConfusionMatrix(classes).to(device)
    mistakes: list[Mistake] = []
    damaged: list[str] = []
    done = 0
    for images, labels, places, decoded in evaluation_loader(source, batch_size, workers, skip_bad):
        logits = network(images.to(device)).float()
        require_logit_per_class(logits, source)
        damaged += [source.val.where(place) for place in places[~decoded].tolist()]
        keep = (labels != IGNORED).to(device)
        if bool(keep.any()):
            kept, wanted = logits[keep], labels.to(device)[keep]
            for metric in (top1, top5, confusion):
                metric.update(kept, wanted)
            mistakes = heapq.nlargest(MISTAKES, [*mistakes, *_mistakes(kept, wanted, places[keep.cpu()])])
        done += len(labels)
        progress(done, len(source.val))
    if len(damaged) == len(source.val):
        raise DataError(f"{source.name}: none of the {len(damaged)} validation images can be decoded, as {damaged[0]}")
    return Evaluation(float(top1.compute()), float(top5.compute()), confusion.compute().cpu().long(), mistakes, damaged)


def evaluation_loader(source: Source, batch_size: int, workers: int, skip_bad: bool, first: int = 0) -> DataLoader:
    """The validation images in their order, from the one numbered `first` on."""
    sampler = EpochSampler(len(source.val), shuffle=False)
    sampler.resume(0, first)
    return DataLoader(
        ImageView(source, train=False, skip_bad=skip_bad),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),
    )


def require_logit_per_class(logits: Tensor, source: Source) -> None:
    """Raise `ArgumentError` unless there is a logit for each class of the set."""
    if logits.shape[1] != len(source.classes):
        raise ArgumentError(
            f"--data: {source.name} has {len(source.classes)} classes and the network tells {logits.shape[1]} apart; "
            "pass data of the classes it was trained on"
        )


def _mistakes(logits: Tensor, labels: Tensor, places: Tensor) -> list[Mistake]:
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    wrong = predicted != labels
    columns = (confidence[wrong], places.to(wrong.device)[wrong], labels[wrong], predicted[wrong])
    return [Mistake(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]
