"""How well each class is told from the others, over whole sets: average precision, and F1 at probability 0.5."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score, MultilabelStatScores

from condconv.data import Source
from condconv.tasks.classify.evaluator import require_logits
from condconv.tasks.multilabel.view import known


@dataclass(frozen=True)
class Tagged:
    """Of each class: average precision and F1, NaN without an image of it, and how many images have it; (classes,)."""

    classes: tuple[str, ...]
    precision: Tensor
    f1: Tensor
    having: Tensor
    images: int

    @property
    def score(self) -> float:
        """Mean average precision over the classes that occur."""
        return float(self.precision[self.having > 0].mean())

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the classes that occur."""
        return float(self.f1[self.having > 0].mean())


class TagEvaluator(nn.Module):
    """Adds up the logits of a network, and the classes of the images; over all processes."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        classes = len(source.classes)
        # None: the exact curve, for which all probabilities are kept.
        self.precision = MultilabelAveragePrecision(classes, average="none", thresholds=None)
        self.f1 = MultilabelF1Score(classes, average="none")
        self.stats = MultilabelStatScores(classes, average="none")

    def reset(self) -> None:
        """Begin anew."""
        for metric in (self.precision, self.f1, self.stats):
            metric.reset()

    def add(self, output: Any, batch: Sequence[Any]) -> None:
        """Add logits (B, classes). Raises `ArgumentError` where they are those of other classes."""
        require_logits(output, self.source)
        tags = batch[1].to(output.device)
        keep = known(tags)
        if not bool(keep.any()):
            return
        probabilities, wanted = output[keep].float().sigmoid(), tags[keep].int()
        for metric in (self.precision, self.f1, self.stats):
            metric.to(output.device).update(probabilities, wanted)

    def found(self) -> Tagged:
        """See `Tagged`."""
        # (classes, 5): true positives, false positives, true negatives, false negatives, images that have the class.
        counts = self.stats.compute().cpu()
        having = counts[:, 4]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive samples")  # said here by NaN
            precision, f1 = (
                metric.compute().cpu().float().masked_fill(having == 0, float("nan"))
                for metric in (self.precision, self.f1)
            )  # fmt: skip
        return Tagged(self.source.classes, precision, f1, having, int(counts[0, :4].sum()))


class TagMeter(nn.Module):
    """Binary cross-entropy over the classes, mean average precision and mean F1."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.loss = MeanMetric(nan_strategy="disable")  # by default NaN would be left out of the means
        self.tags = TagEvaluator(source)

    def reset(self) -> None:
        """Begin anew."""
        self.loss.reset()
        self.tags.reset()

    def update(self, output: Tensor, batch: Sequence[Any]) -> None:
        """Add logits (B, classes)."""
        keep = known(batch[1])
        if not bool(keep.any()):
            return
        logits, wanted = output[keep].float(), batch[1][keep]
        self.loss.update(F.binary_cross_entropy_with_logits(logits, wanted, reduction="none"))
        self.tags.add(output, batch)

    def compute(self) -> dict[str, float]:
        """The validation columns, over the classes that occur."""
        found = self.tags.found()
        return {"val_loss": float(self.loss.compute()), "val_map": found.score, "val_f1": found.mean_f1}
