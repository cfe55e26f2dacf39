"""The Lightning side of training a classifier: a step, an optimiser, and everything an exact resume needs."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from condconv.data import IGNORED
from condconv.errors import CheckpointError, NonFiniteError
from condconv.observation import record_routing
from condconv.training.routing import RoutingStatistics, conditional_layers

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Images (B, C, H, W), labels (B,), indices (B,), whether each image could be decoded (B,)."""

LABEL_SMOOTHING = 0.1
WEIGHT_DECAY = 1e-4
MOMENTUM = 0.9
GRADIENT_CLIP_NORM = 5.0
WARM_UP_SHARE = 0.05
_FINITE_CHECK_STEPS = 50


def learning_rate_factor(step: int, total_steps: int) -> float:
    """Linear warm-up over the first 5 % of the steps, then half a cosine to 0; a factor on the peak learning rate."""
    warm_up = max(1, round(WARM_UP_SHARE * total_steps))
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, total_steps - warm_up))))


class ClassificationModule(pl.LightningModule):
    """Trains a network (B, C, H, W) → logits (B, classes) with SGD (Nesterov), label smoothing and a cosine
    schedule.
    """

    def __init__(self, network: nn.Module, *, num_classes: int, lr: float, total_steps: int) -> None:
        super().__init__()
        self.network = network
        self.lr = lr
        self.total_steps = total_steps
        self.train_loss = MeanMetric()
        self.train_accuracy = MeanMetric()
        self.val_loss = MeanMetric()
        self.val_accuracy = MeanMetric()
        layers = conditional_layers(network)
        self.routing = RoutingStatistics(layers, num_classes) if layers else None
        self._restored: dict[str, Any] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.network(images)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD with Nesterov momentum through timm, which exempts norms and one-dimensional biases from weight decay."""
        from timm.optim import create_optimizer_v2

        optimizer = create_optimizer_v2(
            self.network, opt="sgd", lr=self.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's running means anew."""
        self.train_loss.reset()
        self.train_accuracy.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        images, labels, _, _ = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        self.train_loss.update(loss.detach(), len(labels))
        self.train_accuracy.update((logits.detach().argmax(dim=1) == labels).float())
        if batch_idx % _FINITE_CHECK_STEPS == 0:
            self.require_finite(batch_idx)
        return loss

    def require_finite(self, batch_idx: int) -> None:
        """Raise `NonFiniteError` if the training loss of this epoch has become NaN or infinite."""
        if not bool(torch.isfinite(self.train_loss.mean_value)):
            raise NonFiniteError(
                f"the training loss is not finite in epoch {self.current_epoch + 1}, by step {batch_idx + 1} of it; "
                f"lower --lr (now {self.lr:g}), and check the images for NaN. The last checkpoint is from before"
            )

    def on_validation_epoch_start(self) -> None:
        """Begin the running means anew."""
        self.val_loss.reset()
        self.val_accuracy.reset()
        if self.routing is not None:
            self.routing.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss, accuracy and routing of one batch; places labelled `IGNORED` don't count."""
        images, labels, _, _ = batch
        if self.routing is None:
            logits = self.network(images)
        else:
            with record_routing(self.network) as routing:
                logits = self.network(images)
            self.routing.update(routing, labels)
        keep = labels != IGNORED
        if not bool(keep.any()):
            return
        self.val_loss.update(F.cross_entropy(logits[keep].float(), labels[keep]), int(keep.sum()))
        self.val_accuracy.update((logits.argmax(dim=1) == labels)[keep].float())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what belongs to each process: generators and running means."""
        mine: dict[str, Any] = {
            "cpu_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "train_loss": _metric_state(self.train_loss),
            "train_accuracy": _metric_state(self.train_accuracy),
        }
        everyone: list[Any] = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
        checkpoint["processes"] = everyone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember this process's part until training starts."""
        everyone = checkpoint["processes"]
        if len(everyone) != self.trainer.world_size:
            raise CheckpointError(
                f"the checkpoint was written by {len(everyone)} processes and this run has {self.trainer.world_size}; "
                "an exact resume needs the same number"
            )
        self._restored = everyone[self.global_rank]

    def on_train_start(self) -> None:
        """Put generators and running means back; nothing draws random numbers between here and the first step."""
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu_generator"])
        if self._restored["cuda_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._restored["cuda_generator"])
        for name in ("train_loss", "train_accuracy"):
            _load_metric_state(getattr(self, name), self._restored[name], self.device)
        self._restored = None


def _metric_state(metric: MeanMetric) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value).detach().cpu().clone() for name, value in metric.metric_state.items()}


def _load_metric_state(metric: MeanMetric, state: dict[str, Tensor], device: torch.device) -> None:
    for name, value in state.items():
        setattr(metric, name, value.to(device))
