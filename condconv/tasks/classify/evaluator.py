"""What a classifier gets right, what it takes for what, and where it is surest and wrong."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from condconv.data import IGNORED, ImageView, Source
from condconv.errors import ArgumentError

MISTAKES = 25
TOP = 5


class Mistake(NamedTuple):
    """One image that is classified wrong: how sure the network is, which image, and both classes."""

    confidence: float
    place: int
    true: int
    predicted: int


@dataclass(frozen=True)
class Classified:
    """Top-1 and top-5 accuracy over all images; `confusion` int64 (true class, predicted class); `mistakes` the surest
    first; `by_condition` the share of right images under each of the source's conditions.
    """

    top1: float
    top5: float
    confusion: Tensor
    mistakes: list[Mistake]
    by_condition: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Top-1 accuracy."""
        return self.top1

    @property
    def images(self) -> int:
        """How many images count."""
        return int(self.confusion.sum())

    @property
    def of_class(self) -> Tensor:
        """Accuracy of each class: (classes,), NaN for one without images."""
        return self.confusion.diag() / self.confusion.sum(dim=1)


class ClassificationEvaluator:
    """Adds up the logits of a network on the images of a view."""

    def __init__(self, source: Source, view: ImageView) -> None:
        self.source = source
        self.view = view
        classes = len(source.classes)
        self.top1, self.top5 = (MulticlassAccuracy(classes, top_k=min(k, classes), average="micro") for k in (1, TOP))
        self.confusion = MulticlassConfusionMatrix(classes)
        self.mistakes: list[Mistake] = []
        conditions = view.normalise.conditions
        self.conditions = () if conditions is None else conditions.names
        self.under = torch.zeros(len(self.conditions), 2)

    def add(self, output: Any, batch: Sequence[Any]) -> None:
        """Add logits (B, classes). Raises `ArgumentError` where they are those of other classes."""
        _, labels, places, _, *_ = batch
        logits = output.float()
        require_logits(logits, self.source)
        keep = labels != IGNORED
        if not bool(keep.any()):
            return
        kept, wanted = logits[keep.to(logits.device)], labels[keep].to(logits.device)
        for metric in (self.top1, self.top5, self.confusion):
            metric.to(logits.device).update(kept, wanted)
        self.mistakes = heapq.nlargest(MISTAKES, [*self.mistakes, *_mistakes(kept, wanted, places[keep])])
        if self.conditions:
            which = torch.tensor([self.view.condition_of(place) for place in places[keep].tolist()])
            right = (kept.argmax(dim=1) == wanted).float().cpu()
            self.under.index_add_(0, which, torch.stack([right, torch.ones_like(right)], dim=1))

    def found(self) -> Classified:
        """See `Classified`."""
        by_condition = dict(zip(self.conditions, (self.under[:, 0] / self.under[:, 1]).tolist(), strict=True))
        top1, top5 = float(self.top1.compute()), float(self.top5.compute())
        return Classified(top1, top5, self.confusion.compute().cpu().long(), self.mistakes, by_condition)


def require_logits(logits: Tensor, source: Source) -> None:
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
