"""What a training run is told: one flat record, the same as the command line's flags, as a recipe's keys and as the
run folder's config.yaml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, replace
from typing import Any, Literal

from condconv.devices import DEVICES
from condconv.errors import argument_error
from condconv.runs.setting_rules import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SEED,
    WHOLE,
    Rule,
    check_rules,
    setting,
)

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}
SCHEDULES = ("cosine", "step", "exponential")
GATES = ("sigmoid", "softmax")
AUTO_AUGMENTS = ("imagenet", "cifar10", "svhn", "rand", "trivial")
# Named here too, since importing them takes torch; a test compares.
CONDITIONS = ("plain", "inverted", "turned", "noisy", "blurred")
DETECTION_LOSSES = ("softmax", "focal")
NO_VARIANT = "none"
PUBLISHED = "published"
BALANCES = ("loss", "sampling")
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
FRACTION = Rule(lambda value: 0 < value < 1, "must lie between 0 and 1")
WIDTH = Rule(lambda value: 0 < value <= 64, "must be above 0 and at most 64")
SMALL_INPUT = 64
SMALL_INPUT_STRIDES = (4, 2, 1)
SMALLEST_MAP = 7
FAST_STEPS = 3


SECTIONS = {
    "data": "data", "model": "network", "dropout": "regularisation", "epochs": "optimisation",
    "seed": "how it is run", "name": "what it leaves",
}  # fmt: skip
"""First field of each part of the settings → its title on the command line."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Each field's metadata is its help text on the command line and the rule for its value."""

    # Data.
    data: str = setting(MISSING, "fashion-mnist, digits, a folder (train/ and val/, tar shards, IDX) or URL of shards")
    task: str | None = setting(
        None, "classify, multilabel, detect, keypoints or restore (default: what the data says, else classify)"
    )
    input_size: int | None = setting(
        None, "side of the square that the network gets, pixels (default: the set's)", COUNT
    )
    num_classes: int | None = setting(None, "classes that the data must have (default: as many as it has)", COUNT)
    val_dir: str | None = setting(
        None, "folder of the validation images (default: val, valid, validation or test beside train)"
    )
    val_fraction: float | None = setting(
        None, "share of each class that validates, where nothing else says which images do", FRACTION
    )
    labels: str | None = setting(
        None, "table of --data's images, CSV or Parquet: columns image, label and, if it says so, split (train, val)"
    )
    balance: str | None = setting(
        None,
        "against unequal classes: 'loss' weighs an image by how rare its class is, 'sampling' draws every class as "
        "often as the others",
        BALANCES,
    )
    limit_train: int | None = setting(None, "train on a fixed subset of this many images", COUNT)
    limit_val: int | None = setting(None, "validate on a fixed subset of this many images", COUNT)
    skip_bad_images: bool = setting(False, "count and list damaged samples instead of stopping")
    random_crop: bool = setting(True, "train on random crops; false: on the part of an image that validation sees")
    auto_augment: str | None = setting(None, f"learned augmentation: {', '.join(AUTO_AUGMENTS)}", AUTO_AUGMENTS)
    conditions: str | None = setting(
        None,
        f"put each image, of training and validation, under one of these at random: 'all', or of "
        f"{', '.join(CONDITIONS)} some, joined by commas; noisy:1.5 is 1.5 times as strong",
    )
    mixup: float = setting(0.0, "alpha of Mixup: pairs of images are blended; 0 for none", NOT_NEGATIVE)
    degradations: str = setting(
        "noise",
        "restore: what was done to a picture, one of these at random with a strength from its range: noise (standard "
        "deviation of 255), blur (Gaussian, pixels), jpeg (quality); 'noise:0-75,blur:0-3,jpeg:10-90' has the ranges",
    )

    detection_loss: str = setting(
        "softmax", f"detect, SSD alone: {', '.join(DETECTION_LOSSES)}; scores follow it", DETECTION_LOSSES
    )

    # Network.
    model: str = setting("mobilenetv1_025", "static backbone, name of the zoo, or any timm network")
    variant: str = setting("condconv", "condconv, dynamic_convolution, or none: static alone")
    width: float = setting(1.0, "factor on the channels of every layer", WIDTH)
    num_experts: int | None = setting(None, "kernels of each layer (default: the variant's)", COUNT)
    options: str | None = setting(
        None, "what is special to the variant's paper, as 'budget=1/2,norm=layer' (default: what the paper uses)"
    )
    targets: str | None = setting(
        None,
        "which layers become conditional: kinds, 'last N blocks', regular expressions, several joined by ' + ' "
        "(default: the variant's placement)",
    )
    max_overhead: float | None = setting(
        None, "leave out layers whose mixing costs more than this share of their convolution (default: none)", POSITIVE
    )
    share: str | None = setting(
        None, "who shares a router: block, network, a number of blocks, or none (default: the variant's)"
    )
    tiles: int = setting(1, "route g x g tiles of an image by themselves; needs --share none", COUNT)
    gate: str | None = setting(None, f"{' or '.join(GATES)} (default: the variant's)", GATES)
    router_init_scale: float = setting(1.0, "factor on the routers' last weights at the start", NOT_NEGATIVE)
    expert_init_scale: float = setting(1.0, "factor on the experts' kernels at the start", POSITIVE)
    pretrained: str | None = setting(
        None,
        "begin with trained weights: without a value with the published ones of --model, else with those of a run "
        "folder, a folder of save_pretrained or a safetensors file; the classifier is new where the classes are others",
        without_value=PUBLISHED,
    )
    output_stride: int | None = setting(
        None, "total downsampling; default: 4 (last map at least 7x7) for inputs below 64 px, else as published", COUNT
    )
    twin: bool = setting(False, "also train two static networks: of the same shape, and widened to equal multiply-adds")

    # Regularisation.
    dropout: float = setting(0.0, "probability of dropping a feature before the classifier", PROBABILITY)
    drop_path: float = setting(0.0, "stochastic depth: of dropping the last block, linear over depth", PROBABILITY)
    expert_dropout: float = setting(0.0, "probability of dropping an expert of an image", PROBABILITY)
    expert_balance: float = setting(
        0.0, "weight of a loss that spreads images over experts: the squared variation of their mass", NOT_NEGATIVE
    )
    label_smoothing: float = setting(0.1, "share of the label that is spread over all classes", PROBABILITY)
    weight_decay: float = setting(1e-4, "L2 penalty on kernels and matrices", NOT_NEGATIVE)
    decay_biases: bool = setting(False, "also on biases; never on normalisation")

    # Optimisation.
    epochs: int = setting(20, "passes over the training set", COUNT)
    early_stopping: int | None = setting(
        None, "end a network after so many epochs without a better score on the validation images", COUNT
    )
    batch_size: int = setting(128, "images of one pass in each process", COUNT)
    accumulate: int = setting(1, "passes whose gradients make one step", COUNT)
    optimizer: str = setting("sgd", "timm's name of the optimiser: sgd (Nesterov), momentum, rmsproptf, adamw, …")
    momentum: float = setting(0.9, "of the optimiser, where it has one", PROBABILITY)
    eps: float | None = setting(None, "of the optimiser, where it has one (default: its own)", POSITIVE)
    lr: float = setting(0.1, "peak learning rate, after warm-up", POSITIVE)
    base_batch: int | None = setting(
        None, "lr is for so many images a step, and scaled to those of all processes (default: not scaled)", COUNT
    )
    router_lr_factor: float = setting(1.0, "factor on the learning rate of routers", NOT_NEGATIVE)
    schedule: str = setting("cosine", f"of the learning rate: {', '.join(SCHEDULES)}", SCHEDULES)
    warmup_epochs: float | None = setting(None, "linear warm-up (default: a twentieth of the run)", NOT_NEGATIVE)
    decay_epochs: float = setting(30.0, "schedules step and exponential: epochs between two decays", POSITIVE)
    decay_factor: float = setting(0.1, "schedules step and exponential: factor of one decay", POSITIVE)
    grad_clip: float = setting(5.0, "largest norm of the gradient; 0 for no limit", NOT_NEGATIVE)
    ema: float = setting(0.0, "decay of the averaged weights, which are then the result; 0 for none", PROBABILITY)
    temperature_start: float | None = setting(None, "of annealed gates, first (default: each gate's own)", POSITIVE)
    temperature_end: float | None = setting(None, "of annealed gates, at last (default: each gate's own)", POSITIVE)
    temperature_epochs: int | None = setting(
        None, "epochs of annealing, linear by step (default: 10, at most half of the run)", COUNT
    )

    # How it is run.
    seed: int = setting(0, "seeds weights, order and augmentation", SEED)
    workers: int | None = setting(None, "loader processes; results don't depend on it", WHOLE)
    device: str = setting("auto", ", ".join(DEVICES), DEVICES)
    precision: str = setting("32", ", ".join(PRECISIONS), tuple(PRECISIONS))
    channels_last: bool = setting(False, "keep images and kernels in NHWC order")
    compile: bool = setting(False, "compile the training pass with torch.compile")
    tune: bool = setting(False, "measure first which strategy trains each conditional layer fastest, and use that one")
    activation_checkpointing: bool = setting(False, "save memory: compute each block's activations twice")

    # What it leaves.
    name: str | None = setting(None, "name of the run folder (default: data-model-variant)")
    out: str = setting("runs", "folder of the run folders")
    logger: str = setting(
        "csv", f"{', '.join(LOGGERS)}: where the numbers of the epochs go besides metrics.csv; all offline", LOGGERS
    )
    report: bool = setting(True, "write the report of what the experts do")
    tensorboard: int | None = setting(None, "write pictures of the routing for TensorBoard every so many epochs", COUNT)
    recipe: str | None = setting(None, "begin with the settings of a recipe; `condconv recipes` lists them")

    def __post_init__(self) -> None:
        """Raise `ArgumentError` for a value outside its range, or settings that exclude one another."""
        check_rules(self)
        if self.name is not None and (not self.name.strip(".") or os.sep in self.name):
            raise argument_error("train", "name", self.name, "must be a plain folder name", "use --out for the folder")
        _check_share(self.share)
        if self.pretrained is not None and self.expert_init_scale != 1:
            rule = "does not go with --pretrained, whose experts begin as trained kernels"
            raise argument_error("train", "expert_init_scale", self.expert_init_scale, rule, "leave one of them out")
        if self.tune and (self.compile or self.variant == NO_VARIANT):
            why = "--compile, which plans itself" if self.compile else "--variant none, which has no conditional layer"
            raise argument_error("train", "tune", True, f"does not go with {why}", "leave one of them out")
        if self.compile and self.expert_balance:
            rule = "does not go with --compile, whose code shows no coefficients"
            raise argument_error("train", "expert_balance", self.expert_balance, rule, "leave one of them out")
        if self.compile and self.activation_checkpointing:
            rule = "does not go with --compile, which decides itself what is computed twice"
            raise argument_error("train", "activation_checkpointing", True, rule, "leave one of them out")

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

    def shortened(self, processes: int = 1) -> TrainConfig:
        """The same run cut down to a few steps and a little validation, to see whether all of it works."""
        images = FAST_STEPS * self.batch_size * self.accumulate * processes
        name = f"{self.run_name}-fast"
        return replace(self, epochs=1, limit_train=images, limit_val=2 * self.batch_size, report=False, name=name)


def _check_share(share: str | None) -> None:
    if share is None or share in ("none", "block", "network") or re.fullmatch("[1-9][0-9]{0,8}", share):
        return
    remedy = "pass none, block, network or a number of blocks"
    raise argument_error("train", "share", share, "is no way to share routers", remedy)


def without_retired(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of earlier versions under their present names, without those that are gone and say nothing: off."""
    kept = {name: value for name, value in settings.items() if name not in _RETIRED or value}
    return {_RENAMED.get(name, name): value for name, value in kept.items()}


_RETIRED = ("router_norm", "upcycle_from")
_RENAMED = {"upcycle_from": "pretrained"}
