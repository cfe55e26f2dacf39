"""Multi-label classification as a task: a yes or no for each class, mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.data import IGNORED, ImageView, Source
from condconv.data.label_table import open_labelled
from condconv.errors import ArgumentError
from condconv.evaluation.evaluate import Evaluation
from condconv.tasks.base import Batch, Request, Samples
from condconv.tasks.classify.prediction import predict
from condconv.tasks.classify.task import Classification
from condconv.tasks.multilabel import SCORE
from condconv.tasks.multilabel.evaluation_report import headline, table_by_class, write_evaluation
from condconv.tasks.multilabel.evaluator import TagEvaluator, TagMeter
from condconv.tasks.multilabel.view import TagView, known


class MultiLabel(Classification):
    """Images (B, C, H, W) → a logit for each class, of a probability of its own; batches are made of `TaggedSample`."""

    name = "multilabel"
    score = SCORE
    training_columns = ()
    validation_columns = ("val_loss", "val_map", "val_f1")
    loss_title = "binary cross-entropy"
    unused = ("degradations", "detection_loss", "mixup", "label_smoothing", "balance", "val_dir", "conditions")
    evaluates = "average precision, class by class"

    def open(self, data: str, *, skip_bad: bool = False) -> Source:
        """See `condconv.data.label_table.open_labelled`."""
        config = self.config
        if config.labels is None or data != config.data:
            raise ArgumentError(
                f"--task multilabel: {data} comes without a table of labels; pass --labels TABLE to train (several "
                "labels of an image are joined by '|'), and leave --data out of eval"
            )
        return open_labelled(
            Path(data).expanduser(), config.labels, val_fraction=config.val_fraction, skip_bad=skip_bad, several=True
        )

    def view(self, source: Source, *, train: bool, skip_bad: bool = False) -> Samples:
        """In training augmented as the settings say."""
        view = super().view(source, train=train, skip_bad=skip_bad)
        assert isinstance(view, ImageView)
        return TagView(view, len(source.classes))

    def about(self, source: Source) -> str:
        """How many classes."""
        return f"any of {len(source.classes)} classes each"

    def group_of(self, batch: Batch) -> Tensor:
        """The first class of each image."""
        tags = batch[1]
        first = (tags == 1).int().argmax(dim=1)
        counts: Tensor = known(tags) & (tags == 1).any(dim=1)
        return first.masked_fill(~counts, IGNORED)

    def validated(self, source: Source) -> Tensor:
        """How many validation images have each class: (classes,)."""
        return torch.stack([source.val.target(place) for place in range(len(source.val))]).sum(dim=0)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Binary cross-entropy, the mean over images and classes."""
        return F.binary_cross_entropy_with_logits(output, batch[1].to(output))

    def averaged(self, outputs: Sequence[Any]) -> Tensor:
        """Logits (B, classes) whose sigmoid is the mean of the outputs' probabilities."""
        return torch.stack([output.float().sigmoid() for output in outputs]).mean(dim=0).logit()

    def measured(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Nothing: average precision is of a whole set."""
        return {}

    def meter(self, source: Source) -> nn.Module:
        """Loss, mean average precision, F1."""
        return TagMeter(source)

    def evaluator(self, source: Source, view: Samples) -> TagEvaluator:  # type: ignore[override]
        """See `TagEvaluator`."""
        return TagEvaluator(source)

    def pictures(self, found: Mapping[str, Any], source: Source) -> dict[str, bytes]:
        """None."""
        return {}

    def remarks(self, found: Mapping[str, Any]) -> list[str]:
        """The table by class."""
        return ["Average precision by class:", table_by_class(found)]

    def headline(self, found: Any) -> str:
        """See `evaluation_report.headline`."""
        return headline(found)

    def write_evaluation(self, out: str | Path, title: str, source: Source, found: Evaluation[Any]) -> Path:
        """See `evaluation_report.write_evaluation`."""
        return write_evaluation(out, title, source, found)

    def predict(self, request: Request) -> list[str]:
        """See `classify.prediction.predict`; the probabilities of an image do not add up to 1."""
        return predict(self, request, torch.sigmoid)


TASK = MultiLabel
