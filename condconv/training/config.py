"""What a training run is told: one flat record, the same as the command line's flags and as the run folder's
config.yaml.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from typing import Literal

from condconv.errors import ArgumentError, argument_error
from condconv.registry import unknown_name_message

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}
SMALL_INPUT = 64
SMALL_INPUT_STRIDES = (4, 2, 1)
SMALLEST_MAP = 7


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Each field's metadata is its help text on the command line."""

    data: str = field(metadata={"help": "fashion-mnist, digits, or a folder: train/ and val/, tar shards, IDX files"})
    model: str = field(default="mobilenetv1_025", metadata={"help": "static backbone or name of the zoo"})
    variant: str = field(default="condconv", metadata={"help": "condconv, dynamic_convolution, or none: static alone"})
    width: float = field(default=1.0, metadata={"help": "factor on the channels of every layer"})
    num_experts: int | None = field(default=None, metadata={"help": "kernels of each layer (default: the variant's)"})
    twin: bool = field(
        default=False,
        metadata={"help": "also train two static networks: of the same shape, and widened to equal multiply-adds"},
    )
    epochs: int = field(default=20, metadata={"help": "passes over the training set"})
    batch_size: int = field(default=128, metadata={"help": "images of one step in each process"})
    lr: float = field(default=0.1, metadata={"help": "peak learning rate of SGD, after warm-up"})
    seed: int = field(default=0, metadata={"help": "seeds weights, order and augmentation"})
    workers: int | None = field(default=None, metadata={"help": "loader processes; results don't depend on it"})
    device: str = field(default="auto", metadata={"help": ", ".join(DEVICES)})
    precision: str = field(default="32", metadata={"help": ", ".join(PRECISIONS)})
    name: str | None = field(default=None, metadata={"help": "name of the run folder (default: data-model-variant)"})
    out: str = field(default="runs", metadata={"help": "folder of the run folders"})
    output_stride: int | None = field(
        default=None,
        metadata={
            "help": "total downsampling; default: 4 (last map at least 7x7) for inputs below 64 px, else as published"
        },
    )
    skip_bad_images: bool = field(
        default=False, metadata={"help": "count and list damaged samples instead of stopping"}
    )
    limit_train: int | None = field(default=None, metadata={"help": "train on a fixed subset of this many images"})
    limit_val: int | None = field(default=None, metadata={"help": "validate on a fixed subset of this many images"})
    no_report: bool = field(default=False, metadata={"help": "skip the report of what the experts do"})
    tensorboard: int | None = field(
        default=None, metadata={"help": "write pictures of the routing for TensorBoard every so many epochs"}
    )

    def __post_init__(self) -> None:
        """Raise `ArgumentError` for a value outside its range."""
        for name in ("epochs", "batch_size", "num_experts", "output_stride", "limit_train", "limit_val", "tensorboard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise argument_error("train", name, value, "must be at least 1", f"pass --{flag(name)} 1 or more")
        if not 0 < self.width <= 64:
            raise argument_error("train", "width", self.width, "must be above 0 and at most 64", "leave --width out")
        if self.workers is not None and self.workers < 0:
            raise argument_error("train", "workers", self.workers, "must not be negative", "pass --workers 0 or more")
        if not 0 <= self.seed < 2**63:
            raise argument_error("train", "seed", self.seed, "must be in 0 … 2^63 - 1", "pass another --seed")
        if not 0 < self.lr < float("inf"):
            raise argument_error("train", "lr", self.lr, "must be positive and finite", "the default is --lr 0.1")
        if self.name is not None and (not self.name.strip(".") or os.sep in self.name):
            raise argument_error("train", "name", self.name, "must be a plain folder name", "use --out for the folder")
        for name, known in (("device", DEVICES), ("precision", tuple(PRECISIONS))):
            if getattr(self, name) not in known:
                raise ArgumentError(f"--{name}: {unknown_name_message(name, getattr(self, name), known)}")

    @property
    def run_name(self) -> str:
        """The given name, or data-model-variant; safe as a folder name."""
        if self.name is not None:
            return self.name
        data = os.path.basename(os.path.normpath(os.path.expanduser(self.data)))
        return re.sub(r"[^\w.-]+", "-", f"{data}-{self.model}-{self.variant}")

    def to_dict(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return name.replace("_", "-")
