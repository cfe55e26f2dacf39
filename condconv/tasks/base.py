"""What a task says about itself, so that training, evaluation, reports and the command line serve all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from condconv.data import MixupView, Source
from condconv.data.sampling import PADDING
from condconv.data.views import View
from condconv.errors import argument_error
from condconv.evaluation.evaluate import Evaluation, Evaluator
from condconv.runs.config import TrainConfig
from condconv.tasks import DEFAULT, Score

Batch = Sequence[Any]
"""What a loader makes of a view's samples: images (B, C, H, W), targets, places (B,), whether each image could be
decoded (B,), and whatever else the task's samples have."""

Samples = View[Any] | MixupView

OF_LABELS = ("val_dir", "val_fraction", "labels", "balance")
"""Settings that say something about images with labels alone; other tasks have them among their `unused`."""


def counted(batch: Batch) -> list[int]:
    """Where in a batch are images that count: neither padding nor damaged."""
    places, decoded = batch[2:4]
    indices: list[int] = ((places != PADDING) & decoded).nonzero().flatten().tolist()
    return indices


class Meter(Protocol):
    """Adds up the validation columns of an epoch, over all processes. It is a module, and moves with the network."""

    def reset(self) -> None:
        """Begin anew."""

    def update(self, output: Any, batch: Batch) -> None:
        """Add a batch: the network's output, and what it was made from."""

    def compute(self) -> Mapping[str, float]:
        """The task's validation columns."""


class Request(NamedTuple):
    """What `condconv predict` was asked for; `progress` is told how many images are done, and of how many."""

    network: nn.Module
    source: Source
    out: Path
    top_k: int
    batch_size: int
    workers: int
    device: torch.device
    skip_bad: bool
    tta: bool
    progress: Callable[[int, int], None]


class Task(ABC):
    """One task of one run.

    Class attributes:
        score: by which networks are compared.
        training_columns: of metrics.csv, after `train_loss`: means over the training images (see `measured`).
        validation_columns: of metrics.csv, what the meter computes: `val_loss`, if any, first.
        loss_title: the axis of the loss.
        unused: settings that say nothing to the task, and are refused where they are given.
        predictions: what `condconv predict` makes where no name is given.
        left_out: what `condconv predict` does about an image that cannot be decoded.
        evaluates: what `condconv eval` is for, in a few words.
        averages: whether there is a mean of the outputs for an image and its mirror image (`--tta`).

    Raises:
        ArgumentError: a setting that the task has no use for.
    """

    name: ClassVar[str]
    score: ClassVar[Score]
    training_columns: ClassVar[tuple[str, ...]]
    validation_columns: tuple[str, ...]
    loss_title: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = ()
    predictions: ClassVar[str]
    left_out: ClassVar[str]
    evaluates: ClassVar[str]
    averages: ClassVar[bool] = False
    collate: Callable[[Sequence[Any]], Batch] | None = None
    """How a loader makes a batch of samples; torch's way where None."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        defaults = {field.name: field.default for field in fields(TrainConfig)}
        for setting in self.unused:
            value = getattr(config, setting)
            if value != defaults[setting]:
                raise argument_error("train", setting, value, f"says nothing to --task {self.name}", "leave it out")

    @property
    def flag(self) -> str:
        """What the command line has to say for this task."""
        return "" if self.name == DEFAULT else f" --task {self.name}"

    # Data.

    @abstractmethod
    def open(self, data: str, *, skip_bad: bool = False) -> Source:
        """Open what `--data` names. Raises `DataError` where the task cannot use it."""

    def prepared(self, source: Source) -> Source:
        """The source as the settings want it: some of its images, of another size."""
        return source.limited(self.config.limit_train, self.config.limit_val).resized(self.config.input_size)

    @abstractmethod
    def view(self, source: Source, *, train: bool, skip_bad: bool = False) -> Samples:
        """The samples of the training or of the validation images."""

    @abstractmethod
    def about(self, source: Source) -> str:
        """What there is to learn, in a few words."""

    @abstractmethod
    def groups(self, source: Source) -> tuple[str, ...]:
        """By what routing is reported: classes of images, degradations, …"""

    @abstractmethod
    def group_of(self, batch: Batch) -> Tensor:
        """The group of each image: int64 (B,), `IGNORED` for those that count for nothing."""

    # Network and training.

    def recipe(self, source: Source) -> str | None:
        """The recipe that is taken where neither a recipe nor a model is named."""
        return None

    def notices(self, source: Source) -> Iterator[str]:
        """What to know of the data before the first step, a line for each."""
        return iter(())

    @abstractmethod
    def network_arguments(self, source: Source) -> dict[str, Any]:
        """The arguments of `create_model`. Raises `ArgumentError` for a model that the task cannot train."""

    def run(self, network: Callable[..., Any], batch: Batch) -> Any:
        """The network's output for a batch."""
        return network(batch[0])

    def averaged(self, outputs: Sequence[Any]) -> Any:
        """One output for several views of the same images; only where the task is `averages`."""
        raise NotImplementedError(f"--task {self.name} has no mean of outputs")

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """What is minimised: ()."""

    @abstractmethod
    def measured(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        """The training columns of a batch: one value for each image, or one for all."""

    @abstractmethod
    def meter(self, source: Source) -> Any:
        """A `Meter` of the validation columns."""

    # Results.

    @abstractmethod
    def evaluator(self, source: Source, view: Samples) -> Evaluator[Any]:
        """What adds up a finished network's outputs on the validation images."""

    @abstractmethod
    def pictures(self, found: Mapping[str, Any], source: Source) -> dict[str, bytes]:
        """PNG by file name for the run folder; `found` has what each network's evaluator found."""

    def remarks(self, found: Mapping[str, Any]) -> list[str]:
        """Paragraphs of Markdown for the run's summary."""
        return []

    @abstractmethod
    def headline(self, found: Any) -> str:
        """What an evaluator found, in one line."""

    @abstractmethod
    def write_evaluation(self, out: str | Path, title: str, source: Source, found: Evaluation[Any]) -> Path:
        """Write the folder of `condconv eval` and return its path; `ArgumentError` where it cannot be written."""

    @abstractmethod
    def check_output(self, out: Path) -> None:
        """Raise `ArgumentError` where `condconv predict` cannot write there, before anything is loaded."""

    @abstractmethod
    def predict(self, request: Request) -> list[str]:
        """Do what `condconv predict` was asked for and return the images that could not be decoded.

        Raises:
            ArgumentError: it cannot be written, or was begun with another network or other images.
            DataError: an image cannot be decoded; what is done is kept.
        """
